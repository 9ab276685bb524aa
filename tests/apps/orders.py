"""Orders are shipped, each by a task; what is done to the outside world is reported to the simulator.

Outside a run of the simulator, the two calls do nothing.
"""

import argparse
import sys
import time

import ray
from ray_sim import effect, mark


@ray.remote(num_cpus=0.5)
class Ledger:
    def __init__(self) -> None:
        self.booked = 0
        mark("ledger opened")

    def book(self, count: int) -> int:
        self.booked += count
        mark("booked", self.booked)
        return self.booked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each order takes")
    parser.add_argument(
        "--ship-first", action="store_true", help="ship, and then do the rest: a mistake"
    )
    args = parser.parse_args()
    ray.init()
    mark("effects", args.orders)

    @ray.remote(num_cpus=0.5)
    def ship(number: int) -> int:
        if args.ship_first:
            effect(f"order-{number}")
        time.sleep(args.seconds)
        if not args.ship_first:
            effect(f"order-{number}")
        return 1

    shipped = sum(ray.get([ship.remote(number) for number in range(args.orders)]))
    booked = ray.get(Ledger.remote().book.remote(shipped))
    print(f"{booked} orders shipped")
    return 0 if booked == args.orders else 1


if __name__ == "__main__":
    sys.exit(main())
