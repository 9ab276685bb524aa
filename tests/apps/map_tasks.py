"""A map over tasks: many numbers are squared, slowly, all over the cluster."""

import argparse
import sys
import time

import ray


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each task takes")
    parser.add_argument("--max-retries", type=int, default=3)
    args = parser.parse_args()
    ray.init()

    @ray.remote(max_retries=args.max_retries)
    def square(number: int) -> int:
        time.sleep(args.seconds)
        return number * number

    results = ray.get([square.remote(number) for number in range(args.tasks)])
    if results != [number * number for number in range(args.tasks)]:
        print("wrong:", results)
        return 1
    print(f"{len(results)} squares, their sum is {sum(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
