"""A pool of actors: each builds a table once, keeps it, and answers many questions from it."""

import argparse
import sys
import time

import ray


@ray.remote(num_cpus=1)
class Table:
    """Remembers a table that takes a while to make."""

    def __init__(self, size: int) -> None:
        self.squares = {number: number * number for number in range(size)}
        self.answered = 0

    def look_up(self, number: int, seconds: float) -> int:
        time.sleep(seconds)
        self.answered += 1
        return self.squares[number]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=3)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each call takes")
    parser.add_argument("--max-restarts", type=int, default=-1)
    args = parser.parse_args()
    ray.init()

    durable = {"max_restarts": args.max_restarts, "max_task_retries": args.max_restarts}
    pool = ray.util.ActorPool(
        [Table.options(**durable).remote(args.calls) for _ in range(args.actors)]
    )
    answers = list(
        pool.map(
            lambda table, number: table.look_up.remote(number, args.seconds), range(args.calls)
        )
    )
    if answers != [number * number for number in range(args.calls)]:
        print("wrong:", answers)
        return 1
    print(f"{len(answers)} answers from {args.actors} actors, their sum is {sum(answers)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
