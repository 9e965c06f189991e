"""Where a run computes: batches are spread over devices, all else is on each of them.

https://docs.jax.dev/en/latest/sharded-computation.html
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .errors import ConfigError

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Devices:
    """A mesh of devices with one axis, `"batch"`.

    The step is compiled for the whole mesh; JAX adds the sums over devices that the mean loss and its gradients need.
    """

    mesh: Mesh

    @classmethod
    def of(cls, devices: int | Sequence[Any] | None, batch_size: int) -> Self:
        """So many of the local devices, or these `jax.Device`s; by default all local ones.

        **Raises:** `ConfigError` if there are fewer, or batches cannot be spread evenly.
        """
        local = jax.local_devices()
        if devices is None:
            chosen = local
        elif isinstance(devices, int):
            if not 1 <= devices <= len(local):
                raise ConfigError(
                    f"--devices is {devices}, but there are {len(local)} {local[0].platform} devices here."
                )
            chosen = local[:devices]
        else:
            chosen = list(devices)
        if batch_size % len(chosen):
            fitting = max(count for count in range(1, len(chosen) + 1) if batch_size % count == 0)
            raise ConfigError(
                f"Batches of {batch_size} cannot be spread evenly over {len(chosen)} devices; choose a --batch-size that is a "
                f"multiple of it, or --devices {fitting}."
            )
        return cls(Mesh(np.array(chosen), ("batch",)))

    def replicated(self, tree: Tree) -> Tree:
        """All arrays of a tree, whole on each device."""
        return eqx.filter_shard(tree, NamedSharding(self.mesh, PartitionSpec()))

    def spread(self, batch: Tree) -> Tree:
        """The arrays of a batch, of which each device has an equal share of the first axis."""
        sharding = NamedSharding(self.mesh, PartitionSpec("batch"))
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        return jax.make_array_from_process_local_data(sharding, batch)

    def __len__(self) -> int:
        return self.mesh.size
