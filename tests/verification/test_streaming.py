"""What is loaded at once is bounded, whatever the number of members and times and the size."""

import numpy as np
import pytest
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from dynamics import LinearGaussian
from sda.observation import Select, observe
from sda.verification import verify

PART = 4096


class Counted(BackendArray):
    """An array on a disk that counts the values of each read."""

    def __init__(self, values, reads):
        self.values, self.reads = values, reads
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self.read
        )

    def read(self, key):
        orthogonal = np.ix_(
            *(np.arange(n)[k] if isinstance(k, slice) else np.atleast_1d(k)
              for k, n in zip(key, self.shape, strict=True))
        )  # fmt: skip
        part = self.values[orthogonal]
        self.reads.append(part.nbytes)
        whole = [i for i, k in enumerate(key) if isinstance(k, (int, np.integer))]
        return part.squeeze(axis=tuple(whole)) if whole else part


def on_disk(dataset, reads):
    """The dataset with variables that are read when they are used, and counted."""

    def lazy(variable):
        data = indexing.LazilyIndexedArray(Counted(variable.values, reads))
        return xr.Variable(variable.dims, data, variable.attrs)

    return dataset.assign({n: lazy(dataset[n].variable) for n in dataset.data_vars})


def draws(members, length, size, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((members, length, size, size)).astype(np.float32)
    edges = {d: (d, np.arange(size) + 0.5, {"period": size}) for d in ("y", "x")}
    return xr.Dataset(
        {"u": (("member", "time", "y", "x"), values)},
        {"time": np.arange(length) * 1.0, "member": np.arange(members), **edges},
    )


@pytest.mark.parametrize(
    "members, length, size", [(4, 6, 32), (32, 6, 32), (4, 24, 32), (4, 6, 96)]
)
def test_no_read_exceeds_the_memory(members, length, size, monkeypatch):
    monkeypatch.setattr("sda.verification.task.FRAME_VALUES", PART)
    posterior, truth = draws(members, length, size), draws(1, length, size, seed=1)
    reference = draws(6, length, size, seed=2)
    observations = observe(truth.isel(member=0), Select(every=2), std=0.5, seed=0)
    small = {"background": reference, "reference": reference, "observations": observations}
    expected = verify(posterior, truth, **small)

    # A part or two states of one member, whichever is more; and for the truth as for a member.
    memory = 4 * max(PART, 2 * size**2)
    reads, other = [], []
    got = verify(
        on_disk(posterior, reads),
        on_disk(truth, reads),
        observations,
        background=on_disk(reference, other),
        reference=on_disk(reference, other),
        memory=memory,
    )
    assert 0 < max(reads) <= memory and max(other) <= memory
    assert len(reads) > posterior.nbytes // memory
    xr.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_transitions_are_scored_across_blocks():
    system = LinearGaussian([[0.9, 0.2], [-0.2, 0.9]], [[0.1, 0.0], [0.0, 0.2]])
    data = system.simulate(members=5, length=40, seed=0, progress=False)
    posterior, truth = data.isel(member=slice(1, None)), data.isel(member=0)
    whole = verify(posterior, truth, system=system)
    reads = []
    small = verify(on_disk(posterior, reads), on_disk(truth, reads), system=system, memory=40)
    xr.testing.assert_allclose(small, whole, rtol=1e-9)
    assert len(reads) > 100
