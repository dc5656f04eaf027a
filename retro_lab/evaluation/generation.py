"""Texts that a trained model writes, token by token."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from retro_lab.evaluation.reader import TextReader


def continue_texts(
    reader: TextReader,
    prompts: Sequence[np.ndarray],
    ends: Callable[[np.ndarray], bool],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[np.ndarray]:
    """Continue prompts until their document ends, or `ends` says so.

    Every token is predicted from a forward pass over the whole sequence. A chunk retrieves as soon as it is complete,
    whether its tokens are the prompt's or new ones, as in the paper.

    Args:
        reader: The model.
        prompts: The document marker and the tokens of each prompt, int [T].
        ends: Whether a text with these new tokens, int [n], is complete.
        max_tokens: Most tokens to add to each.
        temperature: 0 takes the most likely token; otherwise a token is drawn after logits are divided by this.
        generator: Draws the tokens.

    Returns:
        The new tokens of each prompt, int [n], without the marker of a next document.
    """
    texts = [np.asarray(prompt) for prompt in prompts]
    open_texts = list(range(len(texts))) if max_tokens > 0 else []
    while open_texts:
        logits = reader.next_logits([texts[number] for number in open_texts]).cpu()
        if temperature:
            tokens = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
        else:
            tokens = logits.argmax(-1)
        remaining = []
        for number, token in zip(open_texts, tokens.tolist(), strict=True):
            if token == reader.marker:
                continue
            texts[number] = np.append(texts[number], token)
            new = texts[number][len(prompts[number]) :]
            if len(new) < max_tokens and not ends(new):
                remaining.append(number)
        open_texts = remaining
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
