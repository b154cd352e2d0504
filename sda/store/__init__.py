"""Posterior ensembles on disk.

A posterior is a Zarr v3 group that any xarray opens: one variable per physical variable with the
dimensions `(member, time, *space)`, CF attributes, and the provenance of the run in its attributes.
Members are sampled in blocks. A block is one shard, hence one file and one write per variable, and
one member is one chunk, so that reading one member does not read its neighbours.

What is finished is never lost. Shards and attributes are replaced atomically and synced; a block
counts as finished only once the group's attributes say so, after its shards are on disk. Members
that are not finished read as NaN, so the store can be opened at any moment, and a run that was
killed goes on from the finished blocks. The size and checksum of every shard are kept in the
attributes: one that is lost or cut short later would read as NaN or not at all; opening the store
names it, and resuming samples its block again.

Blocks can also come from other processes, which stage them: each writes its shards into a folder
beside the store, and a record of them last of all. Moving them into the store is one rename, by the
one process that writes the store. Staged blocks that a run has left are taken over by the next.
"""

from .attributes import is_posterior as is_posterior
from .checksums import check_content as check_content
from .memory import PosteriorMemory as PosteriorMemory
from .reading import open_dataset as open_dataset
from .replacing import check_target as check_target
from .writer import PosteriorWriter as PosteriorWriter
