"""`task=verify`: read every artifact and compare its bytes with those that were written when it was built."""

from pathlib import Path

from retro_lab import console
from retro_lab.artifacts.manifest import MANIFEST_NAME, Manifest
from retro_lab.artifacts.store import ArtifactStore
from retro_lab.errors import ArtifactError
from retro_lab.runs.folder import RunFolder
from retro_lab.tasks.config import RunConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Check all artifacts under `paths.artifacts`.

    Raises:
        ArtifactError: A file is missing or its bytes have changed; the message counts all such files.
    """
    root = Path(config.paths.artifacts)
    finished, unfinished, damaged = 0, 0, []
    for artifact in ArtifactStore(root).artifacts():
        if not (artifact / MANIFEST_NAME).is_file():
            unfinished += 1
            continue
        finished += 1
        try:
            damaged += [str(artifact / name) for name in Manifest.read(artifact).damaged_files(artifact)]
        except ArtifactError:
            damaged.append(str(artifact / MANIFEST_NAME))
    if not finished and not unfinished:
        raise ArtifactError(f"{root} holds no artifacts; build some with task=build.")
    if damaged:
        raise ArtifactError(
            f"{len(damaged)} files differ from what this release wrote: {', '.join(damaged[:5])}; delete their folders "
            "and build them again."
        )
    rest = f", {unfinished} unfinished (the command that started them resumes them)" if unfinished else ""
    console.output.print(f"{finished} artifacts under {root} are whole{rest}.", soft_wrap=True)
