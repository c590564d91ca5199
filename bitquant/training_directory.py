"""The directory beside the output where an unfinished training is kept, so that ``--resume`` can go on from it."""

import json
import os
import shutil
from hashlib import blake2b
from pathlib import Path

from bitquant.atomic import write
from bitquant.distillation.state import CURRENT
from bitquant.json_object import differences, read_object

RUN = "run.json"
METHOD = "bitquant training"


class TrainingDirectory:
    """``OUT.training`` beside ``OUT``: what run it belongs to, and the trainer's checkpoints.

    Args:
        out (str or Path): the output directory of the run.
    """

    def __init__(self, out):
        out = Path(os.path.realpath(out))
        self.path = out.with_name(f"{out.name}.training")

    @property
    def started(self):
        """Whether it holds a checkpoint to go on from."""
        return (self.path / CURRENT).is_file()

    def check(self, *, resume, overwrite):
        """Raises FileExistsError when something is in the way: an unfinished training that is neither resumed nor
        overwritten, or something that is not ours."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self._ours():
            raise FileExistsError(f"{self.path} is in the way and is not a bitquant training: it is never replaced")
        if self.started and not (resume or overwrite):
            raise FileExistsError(
                f"{self.path} holds an unfinished training: go on with it (--resume) or discard it (--overwrite)"
            )

    def begin(self, run, *, resume):
        """Starts anew, or makes sure that what is resumed is the same run.

        Args:
            run (dict): JSON-able facts that decide the result.
            resume (bool): go on when there is something to go on from.

        Raises:
            ValueError: the training belongs to another run; the differences are named.
        """
        if resume and self.started:
            found = read_object(self.path / RUN).get("run")
            changed = differences(found if isinstance(found, dict) else {}, json.loads(json.dumps(run)))
            if changed:
                raise ValueError(f"{self.path} belongs to another run ({'; '.join(changed)}): not resumed")
            return
        self.remove()
        self.path.mkdir(parents=True)
        write(self.path / RUN, json.dumps({"method": METHOD, "run": run}, indent=1).encode())

    def remove(self):
        """Removes it with everything in it, if it is ours."""
        if self._ours():
            shutil.rmtree(self.path)
        elif self.path.is_dir():
            self.path.rmdir()  # only ever an empty one: ``check`` has been there

    def leave(self):
        """Removes it unless there is something to go on from."""
        if not self.started:
            self.remove()

    def _ours(self):
        try:
            return read_object(self.path / RUN).get("method") == METHOD
        except (OSError, ValueError):
            return False


def digest(keys):
    """A short hex digest of a list of str."""
    hasher = blake2b(digest_size=8)
    for key in keys:
        hasher.update(key.encode(errors="surrogatepass") + b"\0")
    return hasher.hexdigest()
