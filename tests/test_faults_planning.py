"""Results that cannot be written are told before any work starts."""

import pytest
from made_faults import need_mounts, own_mount, run_apart

from planning.errors import PlanningError
from planning.writable import check_writable


def test_a_folder_that_can_be_made_is_not_made(tmp_path):
    check_writable(str(tmp_path / "a/b/results"))
    check_writable(str(tmp_path))
    check_writable("s3://bucket/results")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["results", "results/of/today"])
def test_a_file_in_the_way_is_named(tmp_path, name):
    (tmp_path / "results").write_text("")
    with pytest.raises(PlanningError, match=r"results_dir: .* as .*/results is a file; move it"):
        check_writable(str(tmp_path / name))


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        ("size=64k,ro", "", r"cannot be written \(Read-only file system\); set results_dir to a"),
        ("size=64k,ro", "a/b", r"a/b \(in .*\) cannot be written \(Read-only"),
        ("size=4k,nr_inodes=1", "", r"cannot be written \(No space left on device\); make room"),
    ],
)
def test_a_disk_that_cannot_be_written_is_named(tmp_path, options, name, message):
    need_mounts(tmp_path)

    def work() -> int:
        own_mount(tmp_path, options)
        with pytest.raises(PlanningError, match=message):
            check_writable(str(tmp_path / name))
        return 0

    ended = run_apart(work, tmp_path)
    assert ended.status == 0, ended.said
