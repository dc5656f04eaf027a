"""A trained model as EleutherAI's lm-eval (`lm_eval`) wants it, which is installed with the extra `eval`.

Requests are texts. What is encoded apart from what, and that spaces at the end of a context belong to its continuation,
is lm-eval's own convention. Every text begins with the document marker, as every document did in training.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from retro_lab import console
from retro_lab.corpus.tokenizer import DocumentTokenizer
from retro_lab.errors import ConfigurationError
from retro_lab.evaluation.reader import Scored, TextReader
from retro_lab.generation.generator import Generator
from retro_lab.generation.sampling import Sampling

DEFAULT_NEW_TOKENS = 256
"""Most tokens of a generated text where a task does not say; lm-eval's own models have the same."""
UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature"}
"""What a task may ask of generated texts."""
NEUTRAL: dict[str, Sequence[Any]] = {"top_p": (None, 1), "top_k": (None, 0), "num_beams": (None, 1)}
"""Other arguments, with the values that change nothing."""

TokensOf = tuple[tuple[str, str], list[int], list[int]]
"""Texts of a context and its continuation, and the ids of both."""


class RetroLM(TemplateLM):
    """Answers likelihood and generation requests."""

    def __init__(self, reader: TextReader, generator: Generator, seed: int = 0) -> None:
        """Answer with one model.

        Args:
            reader: Scores texts with it.
            generator: Writes texts with it.
            seed: Of what is drawn in generation, where a task wants that.
        """
        super().__init__()
        self._reader, self._generator, self._seed = reader, generator, seed

    @property
    def _tokenizer(self) -> DocumentTokenizer:
        return self._generator.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The document marker."""
        return self._tokenizer.document_marker

    @property
    def max_length(self) -> int:
        """Tokens of a sequence; longer requests are cut or read in windows."""
        return self._reader.length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text, without the document marker."""
        ids: list[int] = self._tokenizer.encode([string])[0][1:].tolist()
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode as lm-eval does; a continuation that merges with the context's last token is encoded on its own."""
        ids, wanted = super()._encode_pair(context, continuation)
        return (ids, wanted) if wanted else (ids, self.tok_encode(continuation))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return, for each (context, continuation), its log-likelihood, and whether it is the most likely one."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list[TokensOf], **kwargs: Any) -> list[tuple[float, bool]]:
        texts = []
        for _, context, continuation in requests:
            before = context if context[:1] == [self.eot_token_id] else [self.eot_token_id, *context]
            texts.append(Scored(np.array(before + continuation), len(before)))
        return [(-found.nats, found.greedy) for found in self._reader.likelihoods(texts)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each (text,), a whole document, in the windows of our own evaluation."""
        texts = [Scored(np.array([self.eot_token_id, *self.tok_encode(request.args[0])]), 1) for request in requests]
        return [-found.nats for found in self._reader.likelihoods(texts, greedy=False)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return, for each (context, arguments), the text that follows, up to the first of the strings in `until`.

        Raises:
            ConfigurationError: A task wants sampling that is not supported.
        """
        asked = [_arguments(request) for request in requests]
        prompts = [np.array([self.eot_token_id, *self.tok_encode(request.args[0])]) for request in requests]
        groups: dict[str, list[int]] = {}
        for number, arguments in enumerate(asked):
            groups.setdefault(repr(arguments), []).append(number)
        answers = [""] * len(requests)
        with console.progress("generating", "texts", len(requests)) as advance:
            for numbers in groups.values():
                arguments = asked[numbers[0]]
                found = self._generator.generate(
                    [prompts[number] for number in numbers],
                    max_tokens=arguments["max_gen_toks"],
                    sampling=Sampling(arguments["temperature"], seed=self._seed),
                    stop=[text for text in arguments["until"] if text],
                    advance=advance,
                )
                for number, written in zip(numbers, found, strict=True):
                    answers[number] = written.text
        return answers


def _arguments(request: Instance) -> dict[str, Any]:
    """Return what a request asks of its text: `until`, `max_gen_toks`, `temperature`.

    Raises:
        ConfigurationError: It asks for something that is not supported.
    """
    given: dict[str, Any] = dict(normalize_gen_kwargs(request.args[1], DEFAULT_NEW_TOKENS))
    for name, value in given.items():
        if name not in UNDERSTOOD and value not in NEUTRAL.get(name, ()):
            raise ConfigurationError(
                f"The task {request.task_name} generates with {name}={value}, which is not supported; take a task that "
                f"asks for no more than {', '.join(sorted(UNDERSTOOD))}."
            )
    temperature = float(given.get("temperature") or 0) if given["do_sample"] else 0.0
    return {"until": given["until"], "max_gen_toks": given["max_gen_toks"], "temperature": temperature}
