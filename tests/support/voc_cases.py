"""A small VOCdevkit for several tests: VOC2007 with two images and VOC2012 with one."""

from pathlib import Path

from PIL import Image

LISTS = ("VOC2007/ImageSets/Main/trainval.txt", "VOC2012/ImageSets/Main/trainval.txt")
OBJECTS = {
    ("VOC2007", "000005"): [("dog", 0, (1, 1, 60, 50)), ("cat", 1, (10, 20, 10, 20))],
    ("VOC2007", "000007"): [("person", 0, (0, 5, 61, 40))],
    ("VOC2012", "2008_000002"): [("tvmonitor", 0, (10.5, 2, 33.25, 40))],
}


def xml(objects: list[tuple[str, int, tuple[float, ...]]]) -> str:
    """Return the XML of an image of 60 x 50 pixels with objects (name, difficult, corners)."""

    def element(name: str, difficult: int, box: tuple[float, ...]) -> str:
        corners = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>" if name == "person" else ""
        return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox>{part}</object>"

    size = "<size><width>60</width><height>50</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(element(*row) for row in objects)}</annotation>"


def write(root: Path) -> Path:
    """Write pictures, XML files and lists of images, and return `root`."""
    for (year, name), objects in OBJECTS.items():
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / year / folder).mkdir(parents=True, exist_ok=True)
        (root / year / "Annotations" / f"{name}.xml").write_text(xml(objects))
        Image.new("RGB", (60, 50), "green").save(root / year / "JPEGImages" / f"{name}.jpg")
        with (root / year / "ImageSets" / "Main" / "trainval.txt").open("a") as stream:
            stream.write(f"{name}\n")
    return root
