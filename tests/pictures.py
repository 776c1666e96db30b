"""Small pictures of several sizes for tests, in files with lists of them; their colour tells the class."""

import numpy as np
import PIL.Image

COUNTS = {"train": (12, 7, 4), "val": (3, 2, 2), "test": (3, 3, 2)}


def picture(label, rng, size=(40, 30)):
    """A picture of noise around a grey that tells the class, width x height."""
    noise = rng.integers(-20, 20, (size[1], size[0], 3))
    return PIL.Image.fromarray((60 + 60 * label + noise).clip(0, 255).astype(np.uint8))


def write_pictures(folder, counts=COUNTS):
    """Writes JPEGs below folder/pictures and a list for each split; returns options of the source `image_list`."""
    rng = np.random.default_rng(0)
    for split, numbers in counts.items():
        lines = []
        for label, number in enumerate(numbers):
            (folder / "pictures" / split / f"class {label}").mkdir(parents=True)
            for index in range(number):
                name = f"{split}/class {label}/{index}.jpg"
                size = (int(rng.integers(30, 50)), int(rng.integers(30, 50)))
                picture(label, rng, size).save(folder / "pictures" / name, quality=95)
                lines.append(f"{name} {label}\n")
        (folder / f"Toy_{split}.txt").write_text("".join(lines))
    lists = {"train": "train", "validation": "val", "test": "test"}
    return {"root": str(folder / "pictures")} | {
        name: str(folder / f"Toy_{split}.txt") for name, split in lists.items() if split in counts
    }
