"""Read the published weights of the Inception network that the Fréchet inception distance uses."""

from pathlib import Path

from daguerre.errors import DaguerreError
from daguerre.models.inception import INCEPTION_CLASSES, Inception
from daguerre.nn.meta import fill, shapes_only
from daguerre.weights.tensors.reader import open_tensors

WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"


def load_inception(file: Path) -> Inception:
    """The network with the weights of a state dict, as pytorch-fid and torch-fidelity publish it. Nothing in the file is executed.

    Raises:
        DaguerreError: the file is no such state dict; says which file is needed.
    """
    opened = open_tensors(file)
    classes = opened.shapes["fc.weight"].shape[0] if "fc.weight" in opened.shapes else 0
    if classes != INCEPTION_CLASSES or "Mixed_7c.branch_pool.conv.weight" not in opened.shapes:  # those of torchvision have 1000 classes
        found = f"has {classes} classes" if classes not in (0, INCEPTION_CLASSES) else "has other tensors"
        raise DaguerreError(
            f"'{file}' {found} and is not the Inception network of the Fréchet distance; give {WEIGHTS_NAME}, which pytorch-fid and "
            "torch-fidelity publish."
        )
    names = [name for name in opened.shapes if not name.startswith(("fc.bias", "AuxLogits.")) and not name.endswith("num_batches_tracked")]
    with shapes_only():
        network = Inception()
    fill(network, {name: tensor.float() for name, tensor in opened.read(names).items()}, file)
    return network.eval()
