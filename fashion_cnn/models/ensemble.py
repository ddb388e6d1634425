"""Ensembles: networks that are trained together, and the average of networks that were trained apart."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fashion_cnn.errors import UserError
from fashion_cnn.models.layers import float32_linear


class Ensemble(nn.Module):
    """`members` networks of one kind, trained together, whose logits are averaged.

    In training, the batch is split between the members: an epoch takes as long as one member's, and each member is
    trained on other images, so that their errors differ and partly cancel in the average. Images `(B, C, H, W)` in,
    logits `(B, num_classes)` out.

    Args:
        in_channels: channels C of the images.
        num_classes: number of logits.
        members: number of networks, 1 or more.
        member: factory of one network from `in_channels` and `num_classes`; the network ends in a linear layer
            named `classifier`.

    Attributes:
        width: dimensions D of the input of one member's classifier.

    Raises:
        UserError: if `members` is below 1.
    """

    width: int

    def __init__(self, *, in_channels: int, num_classes: int, members: int, member: Callable[..., nn.Module]) -> None:
        super().__init__()
        if members < 1:
            raise UserError(f"model.network.members={members} is not possible: give 1 or more.")
        self.members = nn.ModuleList()
        for _ in range(members):
            network = member(in_channels=in_channels, num_classes=num_classes)
            classifier = network.get_submodule("classifier")
            assert isinstance(classifier, nn.Linear)
            # The members' classifiers are one layer, so that the ensemble too ends in a linear layer.
            network.classifier = nn.Identity()
            self.members.append(network)
            self.width = classifier.in_features
        self.classifier = nn.Linear(members * self.width, num_classes)
        if hasattr(network, "initialise"):
            self.initialise = self._initialise_members

    def _initialise_members(self, images: Tensor) -> None:
        for network in self.members:
            network.initialise(images)  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)`: the members' average, or in training each member's on its images."""
        if not self.training:
            features = torch.cat([network(images) for network in self.members], dim=1) / len(self.members)
            return self.classifier(features)
        parts = zip(
            self.members,
            images.tensor_split(len(self.members)),
            self.classifier.weight.split(self.width, dim=1),
            strict=True,
        )
        return torch.cat(
            [
                float32_linear(network(part), weight, self.classifier.bias)
                for network, part, weight in parts
                if len(part)
            ]
        )


class LogitAverage(nn.Module):
    """The average of the logits of networks that were trained independently.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out.

    Args:
        networks: trained networks with the same classes.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits `(B, num_classes)`."""
        return torch.stack([network(images) for network in self.networks]).mean(dim=0)
