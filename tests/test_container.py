"""The names of mounted folders, read outside of a container; container/ tests the image itself."""

from pathlib import Path

import pytest

from brats_inpainting import container

MOUNTS = """\
80 55 0:39 / / rw,relatime - overlay overlay rw
95 80 254:0 /home/us\\040er/workspace/predictions /mlcube_io0 ro - ext4 /dev/vda rw
96 80 254:0 / /mlcube_io1 ro - ext4 /dev/vdb rw
97 80 254:0 /home/user/filled /predictions ro - ext4 /dev/vda rw
"""
NAMES = {
    "/mlcube_io0": "predictions",
    "/mlcube_io1": "mlcube_io1",  # a whole file system, whose folder on the host is not told
    "/mlcube_io7": "mlcube_io7",
    "/predictions": "predictions",
    "/data/model": "model",
}


@pytest.mark.parametrize("folder", NAMES)
def test_a_model_is_named_after_its_folder_on_the_host_where_the_mount_point_is_only_numbered(
    folder, tmp_path, monkeypatch
):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(container, "MOUNTS", tmp_path / "mountinfo")
    assert container.name_of(Path(folder)) == NAMES[folder]
