"""Made scenes in the folders in which COCO is published."""

import json

from toolkit.data.store import locate


def as_coco(root, kind):
    """`val` and `test` of a kind of scenes; of the latter three images are annotated.

    One annotation is a crowd region, one reaches over the border, one has no area.
    """
    for part in ("val", "test"):
        (root / part).symlink_to(locate("emoji_scenes", kind, part))
    content = json.loads((root / "test" / "annotations.json").read_text())
    content["images"] = content["images"][:3]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] < 3]
    content["annotations"][0]["iscrowd"] = 1
    odd = content["annotations"][1]
    content["annotations"].append({**odd, "id": 9001, "bbox": [60.0, 60, 10, 10]})
    content["annotations"].append({**odd, "id": 9002, "bbox": [10.0, 10, 0, 10]})
    (root / "small.json").write_text(json.dumps(content))
    return str(root)
