"""Work that needs workers, for a cluster whose head offers nothing."""

import sys
import time

import ray


@ray.remote(num_cpus=1)
def work(seconds: float) -> str:
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()


if __name__ == "__main__":
    ray.init()
    tasks, seconds = int(sys.argv[1]), float(sys.argv[2])
    nodes = ray.get([work.remote(seconds) for _ in range(tasks)])
    print(f"{tasks} tasks on {len(set(nodes))} nodes")
