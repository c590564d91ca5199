"""The directory beside the output where an unfinished training is kept, so that ``--resume`` can go on from it."""

import json
import shutil
from hashlib import blake2b

from bitquant.atomic import sync, write
from bitquant.distillation.state import CURRENT
from bitquant.json_object import differences, read_object
from bitquant.reservation import resolve, scratch

RUN = "run.json"
TRAINED = "trained"  # its last step is done; what is left is to pack, save and measure
METHOD = "bitquant training"


class TrainingDirectory:
    """``OUT.training`` beside ``OUT``: what run it belongs to, and the trainer's checkpoints.

    Who uses it has ``OUT`` ``reserved``.

    Args:
        out (str or Path): the output directory of the run.
    """

    def __init__(self, out):
        self.out = resolve(out)
        self.path = self.out.with_name(f"{self.out.name}.training")
        self._begun = False

    @property
    def started(self):
        """Whether it holds a checkpoint to go on from."""
        return (self.path / CURRENT).is_file()

    @property
    def trained(self):
        """Whether all of its steps are done."""
        return self.started and (self.path / TRAINED).is_file()

    def check(self, *, resume, overwrite):
        """Raises FileExistsError when something is in the way: an unfinished training that is neither resumed nor
        overwritten, or something that is not ours."""
        if not self.path.is_symlink():
            if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
                return
            if self._ours():
                if self.started and not (resume or overwrite):
                    raise FileExistsError(
                        f"{self.path} holds an unfinished training: go on with it (--resume) or discard it "
                        "(--overwrite)"
                    )
                return
        raise FileExistsError(f"{self.path} is in the way and is not a bitquant training: it is never replaced")

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
        else:
            self.remove()
            fresh = scratch(self.out)
            fresh.mkdir()
            write(fresh / RUN, json.dumps({"method": METHOD, "run": run}, indent=1).encode())
            sync(fresh)
            fresh.rename(self.path)
        self._begun = True

    def finish(self):
        """Notes that all steps are done."""
        if self.started and not self.trained:
            write(self.path / TRAINED, b"")

    def remove(self):
        """Removes it with everything in it, if it is ours."""
        if self._ours():
            gone = scratch(self.out)
            self.path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        elif self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def leave(self):
        """Removes it unless there is something to go on from."""
        if not self.started:
            self.remove()

    def _ours(self):
        if self._begun and self.started:  # also where it was deleted meanwhile, and only the checkpoints came back
            return True
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
