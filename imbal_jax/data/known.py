"""What is published about well-known image sets: enough to describe them without having the data."""

from typing import NamedTuple


class Known(NamedTuple):
    """The published facts of a data set."""

    name: str  # as tensorflow-datasets spells it
    image_shape: tuple[int, int, int]  # height, width, channels
    class_names: tuple[str, ...]  # in the order of the labels
    train_counts: tuple[int, ...]  # training examples per class
    test_counts: tuple[int, ...]  # test examples per class
    source: str  # the authors' page
    licence: str  # the terms as far as they are stated
    archive: str = ""  # the authors' archive that the prepare task reads; empty where it reads none

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


_DIGITS = tuple(str(digit) for digit in range(10))
_CIFAR_LICENCE = "none stated; the authors ask to cite Krizhevsky 2009"

_CIFAR100_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
bowl boy bridge bus butterfly camel can castle caterpillar cattle
chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket
rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

KNOWN: dict[str, Known] = {
    "cifar10": Known(
        name="cifar10",
        image_shape=(32, 32, 3),
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        train_counts=(5000,) * 10,
        test_counts=(1000,) * 10,
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence=_CIFAR_LICENCE,
        archive="cifar-10-binary.tar.gz",
    ),
    "cifar100": Known(
        name="cifar100",
        image_shape=(32, 32, 3),
        class_names=tuple(_CIFAR100_FINE.split()),
        train_counts=(500,) * 100,
        test_counts=(100,) * 100,
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence=_CIFAR_LICENCE,
        archive="cifar-100-binary.tar.gz",
    ),
    "svhn_cropped": Known(
        name="svhn_cropped",
        image_shape=(32, 32, 3),
        class_names=_DIGITS,  # the authors' label 10 is the digit 0; tensorflow-datasets calls it 0, as here
        train_counts=(4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        test_counts=(1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
        source="http://ufldl.stanford.edu/housenumbers/",
        licence="non-commercial use only (Netzer et al. 2011)",
    ),
    "mnist": Known(
        name="mnist",
        image_shape=(28, 28, 1),
        class_names=_DIGITS,
        train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        source="http://yann.lecun.com/exdb/mnist/",
        licence="usually given as CC BY-SA 3.0 (LeCun, Cortes and Burges)",
    ),
    "fashion_mnist": Known(
        name="fashion_mnist",
        image_shape=(28, 28, 1),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        train_counts=(6000,) * 10,
        test_counts=(1000,) * 10,
        source="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT (Zalando SE)",
    ),
}


def known_dataset(name: str) -> Known | None:
    """The published facts of the set of that name, or None."""
    return KNOWN.get(name)
