"""Whatever is wrong with a configuration is told in one sentence, with what was probably meant."""

from collections.abc import Callable
from pathlib import Path

import pytest

from retro_lab.config import catalog
from retro_lab.config.arguments import complete
from retro_lab.config.compose import compose
from retro_lab.errors import ConfigurationError

Write = Callable[[str, str], Path]

WRONG_OVERRIDES = {
    "retreival.k=3": "There is no setting retreival.k; did you mean retrieval.k?",
    "retrieval.K=3": "There is no setting retrieval.K",
    "k=3": "There is no setting k; did you mean retrieval.k?",
    "+retrieval.kk=3": "There is no setting retrieval.kk; did you mean retrieval.k?",
    "+anything=1": "There is no setting anything. There are backbone, build, callbacks, cca, cluster, compute,",
    "retrieval.zzz=1": "There are retrieval.bm25_b, retrieval.bm25_k1, retrieval.candidates, retrieval.control,",
    "trainer.acelerator=gpu": "did you mean trainer.accelerator?",
    "trainer.max_time=1": "+trainer.max_time=... adds it all the same.",
    "retrieval.k=two": "retrieval.k takes int: Value 'two'",
    "retrieval.k=2.5": "retrieval.k takes int",
    "evaluation.k=3": "evaluation.k takes list[int]",
    "data.batch_size=null": "data.batch_size takes int",
    "model.cca_positions=maybe": "model.cca_positions takes bool",
    "size=huge": "There is no size=huge. The options are 0_5m, 12m, 172m, 1_4m, 1_5b, 425m, 4m, 7_5b, small, ",
    "size=425": "There is no size=425; did you mean 425m?",
    "sise=tiny": "There is no setting sise; did you mean size?",
    "corpus=locale": "There is no corpus=locale; did you mean local?",
    "+experiment=quikstart": "did you mean quickstart?",
    "corpus=local": "corpus.path has no value; give it one: corpus.path=...",
    "corpus.path=x": "There is no setting corpus.path with the corpus chosen; there is with corpus=local or ",
    "corpus.dataset=x": "there is with corpus=c4 or corpus=curation_corpus or ",
    "train": "train is not of the form KEY=VALUE; did you mean task=train?",
    "retrieval.k=[1": "retrieval.k=[1 cannot be read",
    "retrieval.k=1,2": "retrieval.k=1,2 has several values; add -m to run each",
    "~retrieval.k": "retrieval.k",
    "model.dropout=${model.drop}": "model.dropout: Interpolation key 'model.drop' not found.",
    "paths.outputs=${oc.env:NO_SUCH_VARIABLE}": "Environment variable 'NO_SUCH_VARIABLE' not found",
    "name=a/b": "name=a/b cannot name a folder",
    "name=sweeps": "name=sweeps cannot name a folder",
    "seed=-1": "seed must be from 0 to 4,294,967,295, not -1.",
    "seed=4294967296": "seed must be from 0 to 4,294,967,295",
    "paths.outputs=/d/${x": r"write \${ where it is part of a text.",
    "size=null": "There is no size=null.",
    "init.name=foo": "init.name=foo is not one of scratch, retrofit.",
    "retrieval.method=foo": "retrieval.method=foo is not one of dense, bm25, hybrid.",
    "model.positions=foo": "model.positions=foo is not one of transformer_xl, rotary.",
    "task.name=config": "task.name=config is not one of answer, build,",
    "evaluation.keep=[0]": "evaluation.keep is a share, above 0 and up to 1, not 0.0.",
    "evaluation.fractions=[0.5,1.5]": "evaluation.fractions is a share, above 0 and up to 1, not 1.5.",
    "evaluation.keep_unit=page": "evaluation.keep_unit=page is not one of chunk, document.",
    "evaluation.databases=[pil]": "evaluation.databases names the corpus pil, which does not exist; did you mean pile?",
    "evaluation.filters={new: {jaccard: 1}}": "add it with '+evaluation.filters={new: {...}}'.",
    "+evaluation.filters.new={jaccard: 1}": "takes its entries together: '+evaluation.filters={new: {...}}'.",
    "+evaluation.filters={new: {jacard: 1}}": "jacard",
    "+evaluation.filters={new: {jaccard: 2}}": "evaluation.filters.jaccard is a share, above 0 and up to 1, not 2",
    "+evaluation.filters={new: {longest_overlap: 0}}": "evaluation.filters.longest_overlap must be positive, not 0.",
    "+evaluation.filters={new: {}}": "evaluation.filters.new drops no neighbor; set its longest_overlap, jaccard, ",
    "index.metric=l3": "index.metric=l3 is not one of l2, inner_product, cosine.",
}


@pytest.mark.parametrize(("override", "sentence"), WRONG_OVERRIDES.items())
def test_a_wrong_override(override: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose([override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_FILES = {
    "retrieval: {kk: 3}": "There is no setting retrieval.kk in experiment/mine; did you mean retrieval.k?",
    "retreival: {k: 3}": "There is no setting retreival in experiment/mine; did you mean retrieval?",
    "retrieval: {k: two}": "retrieval.k in experiment/mine takes int: Value 'two'",
    "retrieval: 3": "experiment/mine: Merge error",
    "corpus: {pth: x}": "There is no setting corpus.pth in experiment/mine; did you mean corpus.path?",
    "defaults: [override /size: tinny]": "There is no size=tinny; did you mean tiny?",
    "defaults: [override /sise: tiny]": "There is no setting sise in experiment/mine; did you mean size?",
    "defaults: [/experiment/quikstart]": "There is no experiment=quikstart; did you mean quickstart?",
    "retrieval: {k: 3": "mine.yaml, line",
    "[retrieval, k]": "mine.yaml is not made of lines KEY: VALUE.",
    "retrieval.k = 3": "There is no setting retrieval.k = 3 in experiment/mine.",
    "3": "mine.yaml is not made of lines KEY: VALUE.",
}


@pytest.mark.parametrize(("text", "sentence"), WRONG_FILES.items())
def test_a_wrong_experiment_file(text: str, sentence: str, write: Write) -> None:
    write("experiments/mine.yaml", f"# @package _global_\n# Mine.\n{text}\n")
    with pytest.raises(ConfigurationError) as caught:
        compose(["+experiment=mine"])
    assert sentence in str(caught.value)


def test_a_file_in_another_encoding_or_with_odd_characters_is_named(write: Write) -> None:
    write("experiments/mine.yaml", "").write_bytes("seed: 1\n".encode("utf-16"))
    write("experiments/odd.yaml", 'seed: "\x01"\n')
    for name, sentence in (("mine", "mine.yaml is not UTF-8 text"), ("odd", "odd.yaml is not YAML")):
        with pytest.raises(ConfigurationError, match=sentence):
            compose([f"+experiment={name}"])


def test_an_experiment_may_end_in_yml(write: Write) -> None:
    write("experiments/mine.yml", "# Mine.\nseed: 7\n")
    assert compose(["+experiment=mine"]).seed == 7
    assert "mine" in catalog.options("experiment")
    write("experiments/mine.yaml", "# Mine.\nseed: 8\n")
    assert compose(["+experiment=mine"]).seed == 8


STOPPING = "_target_: pytorch_lightning.callbacks.EarlyStopping"


@pytest.mark.parametrize("metric", ["val_loss", "validation/bits_per_byte/k=3", "validation/bits_per_byte"])
def test_a_callback_that_waits_for_no_metric_is_refused_with_those_there_are(metric: str, write: Write) -> None:
    write("experiments/mine.yaml", f"callbacks: {{stop: {{{STOPPING}, monitor: {metric}}}}}\n")
    with pytest.raises(ConfigurationError) as caught:
        compose(["+experiment=mine", "task=train"])
    assert f"callbacks.stop.monitor={metric} is not a metric" in str(caught.value)
    assert "train/loss, train/learning_rate, train/gradient_norm, validation/bits_per_byte/k=0, " in str(caught.value)
    assert str(caught.value).endswith("validation/bits_per_byte/k=2.")
    assert compose(["+experiment=mine", "task=build"])
    assert compose(["+experiment=mine", "task=train", "+callbacks.own._target_=my.Callback"])


def test_a_callback_may_wait_for_a_metric_of_every_model_that_is_trained(write: Write) -> None:
    def monitored(metric: str, task: str) -> object:
        write("experiments/mine.yaml", f"callbacks: {{stop: {{{STOPPING}, monitor: {metric}}}}}\n")
        return compose(["+experiment=mine", f"task={task}"])

    assert monitored("validation/bits_per_byte/k=2", "train")
    assert monitored("validation/bits_per_byte/k=0", "compare")
    with pytest.raises(ConfigurationError, match="not a metric of task=compare"):
        monitored("validation/bits_per_byte/k=2", "compare")


def test_a_sweep_over_an_unknown_setting_names_it(write: Write) -> None:
    write("sweeps/mine.yaml", "# Mine.\nhydra:\n  sweeper:\n    params:\n      retrieval.kk: 0,1\n")
    with pytest.raises(ConfigurationError, match=r"There is no setting retrieval\.kk"):
        complete(["+sweep=mine"])


def test_questions_to_hydra_about_the_run_wait_for_the_run() -> None:
    [override, *_] = complete(["callbacks.checkpoint.dirpath='${hydra:runtime.output_dir}/kept'", "task=plan"])[1:]
    assert "${hydra:runtime.output_dir}" in override
