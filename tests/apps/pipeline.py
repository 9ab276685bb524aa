"""A pipeline through the object store: blocks are made, mixed in pairs, and summed up."""

import argparse
import array
import sys
import time

import ray


def numbers(seed: int, length: int) -> array.array:
    return array.array("q", range(seed, seed + length))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--length", type=int, default=100_000, help="numbers in a block")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each step takes")
    parser.add_argument("--max-retries", type=int, default=3)
    args = parser.parse_args()
    ray.init()
    step = ray.remote(max_retries=args.max_retries)

    @step
    def make(seed: int) -> bytes:
        time.sleep(args.seconds)
        return numbers(seed, args.length).tobytes()

    @step
    def mix(left: bytes, right: bytes) -> bytes:
        time.sleep(args.seconds)
        pairs = zip(memoryview(left).cast("q"), memoryview(right).cast("q"))
        return array.array("q", (a + b for a, b in pairs)).tobytes()

    @step
    def total(block: bytes) -> int:
        time.sleep(args.seconds)
        return sum(memoryview(block).cast("q"))

    blocks = [make.remote(seed) for seed in range(args.blocks)]
    mixed = [mix.remote(blocks[i], blocks[i + 1]) for i in range(0, len(blocks) - 1, 2)]
    totals = ray.get([total.remote(block) for block in mixed])
    expected = [
        sum(numbers(i, args.length)) + sum(numbers(i + 1, args.length))
        for i in range(0, args.blocks - 1, 2)
    ]
    if totals != expected:
        print("wrong:", totals)
        return 1
    print(f"{args.blocks} blocks, their sum is {sum(totals)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
