"""A detached actor that counts, wherever the head's control store remembers it; prints its count."""

import ray


@ray.remote(num_cpus=0.1)
class Counter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


def main() -> None:
    ray.init(namespace="memory")
    counter = Counter.options(
        name="counter", lifetime="detached", get_if_exists=True, resources={"there": 0.1}
    ).remote()
    print("count", ray.get(counter.add.remote()))


if __name__ == "__main__":
    main()
