"""A value kept by two actors on two machines, in memory only: it outlives the loss of one of them, not of both."""

import argparse
import sys
import time

import ray


@ray.remote(num_cpus=1)
class Replica:
    """One copy."""

    def __init__(self, value: int) -> None:
        self.value = value

    def read(self) -> int:
        return self.value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="how long it is kept")
    parser.add_argument("--places", nargs=2, help="custom resources, one of each replica's machine")
    args = parser.parse_args()
    ray.init()

    where = [{"resources": {p: 1}} for p in args.places or ()] or [{}, {}]
    made = [
        Replica.options(name=name, scheduling_strategy="SPREAD", **place).remote(42)
        for name, place in zip("ab", where, strict=True)
    ]
    ray.get([replica.read.remote() for replica in made])
    time.sleep(args.seconds)
    for replica in made:
        try:
            print("the value is", ray.get(replica.read.remote(), timeout=20))
        except ray.exceptions.RayActorError as error:
            print("one replica is lost:", error)
        else:
            return 0
    print("both replicas are lost")
    return 1


if __name__ == "__main__":
    sys.exit(main())
