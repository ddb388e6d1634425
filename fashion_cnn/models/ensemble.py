"""Several networks that answer as one: trained side by side, or each on its own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fashion_cnn.errors import UserError


class Ensemble(nn.Module):
    """`members` networks of one kind, whose logits are averaged.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out.
    member: makes one network; it offers `features` and ends in a linear layer named `classifier`.

    In training each member learns from its own share of a batch: an epoch takes as long as one member's, and shows
    each of them another part of the images. So they err on different images, and their mean errs on fewer.
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
            # All classify in one layer, so that the ensemble too ends in one.
            network.classifier = nn.Identity()
            self.members.append(network)
            self.width = classifier.in_features
        self.classifier = nn.Linear(members * self.width, num_classes)
        if hasattr(network, "initialise"):
            self.initialise = self._initialise_members

    def _initialise_members(self, images: Tensor) -> None:
        for network in self.members:
            network.initialise(images)  # type: ignore[operator]

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: the members' features side by side, `(B, members * D)`."""
        return torch.cat([network(images) for network in self.members], dim=1) / len(self.members)

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return self.classifier(self.features(images))
        shares = zip(
            self.members,
            images.tensor_split(len(self.members)),
            self.classifier.weight.split(self.width, dim=1),
            strict=True,
        )
        return torch.cat(
            [
                functional.linear(network(share), weight, self.classifier.bias)
                for network, share, weight in shares
                if len(share)
            ]
        )


class LogitAverage(nn.Module):
    """Networks that were trained each on its own, and whose logits are averaged.

    Images `(B, C, H, W)` in, logits `(B, num_classes)` out.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def features(self, images: Tensor) -> Tensor:
        """The networks' features side by side, `(B, sum of their D)`."""
        return torch.cat([network.features(images) for network in self.networks], dim=1)  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images) for network in self.networks]).mean(dim=0)
