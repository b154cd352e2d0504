"""Times the filters of the reference implementation, see bench_classical.py.

Runs in an environment of its own that has the package `dapper`; prints one line of JSON.

    python scripts/reference_classical.py CYCLES TRIES
"""

import json
import sys
import time


def main(cycles: int, tries: int) -> None:
    import dapper.da_methods as methods
    from dapper.mods.Lorenz96.sakov2008 import HMM
    from dapper.tools.seeding import set_seed

    HMM.tseq.BurnIn, HMM.tseq.Ko = 20, cycles
    filters = {
        "ETKF": methods.EnKF("Sqrt", N=24, infl=1.013, rot=True),
        "LETKF": methods.LETKF(N=7, infl=1.04, rot=True, loc_rad=4),
    }
    found = {}
    for name, each in filters.items():
        seconds, rmse = [], []
        for seed in range(tries):
            set_seed(3000 + seed)
            truth, observed = HMM.simulate()
            start = time.process_time()
            each.assimilate(HMM, truth, observed, liveplots=False)
            seconds.append(time.process_time() - start)
            each.stats.average_in_time()
            rmse.append(float(each.avrgs.err.rms.a.val))
        found[name] = {"seconds": min(seconds), "rmse": sorted(rmse)[len(rmse) // 2]}
    print()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
