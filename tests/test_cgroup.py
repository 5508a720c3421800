"""Control groups of both versions, laid out as the kernel does."""

from __future__ import annotations

from pathlib import Path

from agent import cgroup
from agent.cgroup import Group

MB = 1 << 20


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_two_has_the_tightest_limit_on_the_way_to_the_root(tmp_path):
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/edge-ocr-worker.service\n",
            "sys/fs/cgroup/memory.stat": "anon 1\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{300 * MB}\n",
            "sys/fs/cgroup/system.slice/edge-ocr-worker.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/edge-ocr-worker.service/memory.high": f"{350 * MB}\n",
            "sys/fs/cgroup/system.slice/edge-ocr-worker.service/memory.current": f"{200 * MB}\n",
            "sys/fs/cgroup/system.slice/edge-ocr-worker.service/memory.stat": f"anon 5\ninactive_file {20 * MB}\n",
            "sys/fs/cgroup/system.slice/edge-ocr-worker.service/memory.events": "low 0\nhigh 3\nmax 1\noom 0\n",
        },
    )
    assert cgroup.look(root) == Group(300 * MB, 180 * MB, 4)


def test_container_sees_its_own_group_as_the_root(tmp_path):
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{512 * MB}\n",
            "sys/fs/cgroup/memory.current": f"{100 * MB}\n",
        },
    )
    assert cgroup.look(root) == Group(512 * MB, 100 * MB, 0)


def test_version_one_is_understood_too(tmp_path):
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/1\n0::/\n",
            "sys/fs/cgroup/memory/docker/1/memory.stat": f"total_inactive_file 7\nhierarchical_memory_limit {MB}\n",
            "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes": "107\n",
            "sys/fs/cgroup/memory/docker/1/memory.failcnt": "2\n",
        },
    )
    assert cgroup.look(root) == Group(MB, 100, 2)


def test_no_limit_is_zero(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.stat": f"hierarchical_memory_limit {2**63 - 4096}\n",
    }
    assert cgroup.look(lay(tmp_path, files)).limit_bytes == 0


def test_nothing_to_be_seen_is_no_group(tmp_path):
    assert cgroup.look(tmp_path) == Group()
    assert cgroup.look(lay(tmp_path, {"proc/self/cgroup": "no such form\n\n"})) == Group()
    assert cgroup.look(lay(tmp_path, {"proc/self/cgroup": "0::/../../etc\n"})) == Group()


def test_this_machine_can_be_looked_at():
    assert cgroup.look().used_bytes >= 0
