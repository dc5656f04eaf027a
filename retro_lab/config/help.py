"""The text of `--help`, made from the configuration files themselves."""

from retro_lab.config.explain import configuration_file, group_options, groups
from retro_lab.config.roots import describe

USAGE = """\
retro_lab: retrieval-enhanced language models, configured through Hydra

  python -m retro_lab                                     the quickstart
  python -m retro_lab +experiment=NAME [KEY=VALUE ...]    run an experiment
  python -m retro_lab +sweep=NAME [KEY=VALUE ...]         run every cell of a sweep and make its table
  python -m retro_lab task=TASK +experiment=NAME          do one thing of an experiment
  python -m retro_lab +experiment=NAME --cfg job          print the configuration and stop

The same command again resumes what was interrupted and reuses what stands."""

EXAMPLES = """\
Overrides: retrieval.k=4, database.fraction=0.1, size=425m, init=retrofit, data.batch_size=8, name=my_run
Your own corpus: corpus=local corpus.path=FILE.jsonl corpus.text_field=text
Your own experiments: ./experiments/NAME.yaml and ./sweeps/NAME.yaml in the working directory
Completion: eval "$(retro-lab -sc install=bash)"; more on Hydra's own flags: --hydra-help"""

LISTED = {"task": "Tasks", "experiment": "Experiments", "sweep": "Sweeps"}


def help_text() -> str:
    """Return usage, tasks, experiments and sweeps with a line each, and the options of every other group."""
    sections = [USAGE]
    for group, title in LISTED.items():
        rows = [(option, describe(configuration_file(group, option))) for option in group_options(group)]
        width = max((len(option) for option, _ in rows), default=0)
        sections.append("\n".join([f"{title}:", *(f"  {option:<{width}}  {text}" for option, text in rows)]))
    others = [group for group in groups() if group not in LISTED]
    width = max(len(group) for group in others)
    options = [f"  {group:<{width}}  {', '.join(group_options(group))}" for group in others]
    sections.append("\n".join(["Groups (GROUP=OPTION):", *options]))
    return "\n\n".join([*sections, EXAMPLES])
