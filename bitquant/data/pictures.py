"""Pictures as data: a folder of png and jpg files for a vision model."""

from pathlib import Path

from bitquant.data.kind import Data, files_below, names_inputs
from bitquant.data.pixels import PixelProcessor


class Pictures(Data):
    """Pictures, all of the size that the model takes.

    Args:
        samples (list[str]): file names below ``root``.
        source (Source): the model.
        root (str): the folder.
    """

    kind, unit, suffixes = "image", "pictures", (".png", ".jpg", ".jpeg")
    batch_size, most_held_out = 16, 500

    def __init__(self, samples, source, *, root, **settings):
        super().__init__(samples, source, **settings)
        self.root, self.processor = Path(root), PixelProcessor.of(source)

    @classmethod
    def read(cls, path, source, **settings):
        root = Path(path) if Path(path).is_dir() else Path(path).parent
        names = [file.relative_to(root).as_posix() for file in files_below(path, cls.suffixes)]
        return cls(names, source, root=str(root.resolve()), **settings)

    @classmethod
    def fits(cls, source):
        return "pixel_values" in source.arguments or not names_inputs(source)

    @classmethod
    def example(cls, source):
        """Two pictures of noise."""
        processor = PixelProcessor.of(source)
        return processor([processor.prepare(processor.blank())] * 2)

    def usable(self, samples):
        kept, skipped = [], []
        for name in samples:
            try:
                self.processor.open(self.root / name)
                kept.append(name)
            except ValueError as error:
                skipped.append((name, str(error)))
        return kept, skipped

    def collate(self, samples, rng):
        return self.processor([self.processor.open(self.root / name) for name in samples])

    def timings(self):
        pixels = self.processor.prepare(self.processor.blank())
        return [({"batch": batch}, self.processor([pixels] * batch)) for batch in (1, self.batch_size)]

    def settings(self):
        return {**super().settings(), "root": str(self.root)}
