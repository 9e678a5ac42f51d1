"""Reading mosaics, wherever they lie: a folder, a daemon, `tilecast web`, or any CATMAID tile source.

    from tilecast_protocol import Mosaic

    with Mosaic.open("http://scope:8750") as mosaic:         # the newest run
        overview = mosaic.read(level=mosaic.n_levels - 1)    # everything, small
        mosaic.level(0)[-500:, ::2]                          # an array that is read when it is sliced

`reader` has the class; `source` is the interface that `query`, `web`, `catmaid` and, in the daemon's distribution, the
folder are behind; `facts` knows where pixels lie, `fetching` and `cache` bring tiles, `level` looks like an array, and
`following` tells what changed. See `protocol/README.md`, "Read a mosaic".
"""

from .facts import Facts as Facts
from .following import Change as Change
from .following import Following as Following
from .level import Level as Level
from .reader import Mosaic as Mosaic
from .source import MissingPlaneError as MissingPlaneError
from .source import Source as Source
from .source import UnknownRunError as UnknownRunError
