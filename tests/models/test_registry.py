"""A registry: what is registered later is known to the classes of before, and no name is taken twice."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest

from agfl_models.errors import ConfigError
from agfl_models.registry import Registry, loading, only_plugins
from agfl_models.validation import Config, validate


class Shape(Config):
    kind: str


SHAPES = Registry(Shape, "kind")


class Drawing(Config):
    shapes: tuple[Annotated[Shape, SHAPES], ...]


def test_a_class_of_before_knows_what_is_registered_later() -> None:
    content = {"shapes": [{"kind": "circle", "radius": 2}]}
    with pytest.raises(ConfigError, match=r"^drawing: shapes\.0: unknown 'kind' 'circle'"):
        validate(Drawing, content, "drawing")

    @SHAPES.register
    class Circle(Shape):
        kind: Literal["circle", "ring"]
        radius: int

    drawing = validate(Drawing, content, "drawing")
    assert drawing.shapes == (Circle(kind="circle", radius=2),)
    assert drawing.model_dump(mode="json") == content
    assert SHAPES.names == ("circle", "ring")
    for wrong, line in (
        ({"kind": "circle", "radius": "x"}, r"shapes\.0\.radius: Input should be a valid integer.*, got 'x'"),
        ({"kind": "circl", "radius": 1}, r"shapes\.0: unknown 'kind' 'circl' \(did you mean 'circle'\?\)"),
        ({"kind": "circle", "radiu": 1}, r"shapes\.0: unknown key 'radiu' \(did you mean 'radius'\?\)"),
        ({"radius": 1}, r"shapes\.0\.kind: required, one of circle, ring"),
        (3, r"shapes\.0: must be a mapping, got 3"),
    ):
        with pytest.raises(ConfigError, match=f"^drawing: {line} .AGFL-CONFIG"):
            validate(Drawing, {"shapes": [wrong]}, "drawing")


def test_no_name_is_taken_twice_and_none_is_open() -> None:
    shapes = Registry(Shape, "kind")

    @shapes.register
    class Circle(Shape):
        kind: Literal["circle"]

    class Disk(Shape):
        kind: Literal["circle"]

    assert shapes.register(Circle) is Circle  # once more, as where a plug-in's module registers it, too
    for registry in (shapes, Registry(Shape, "kind", beyond=shapes)):
        with pytest.raises(ConfigError, match=r"^kind: .*got 'circle', which is registered.*AGFL-CONFIG-132"):
            registry.register(Disk)
    with pytest.raises(ConfigError, match=r"^Shape\.kind: .*got \(\) .AGFL-CONFIG-131"):
        shapes.register(Shape)
    with pytest.raises(ConfigError, match=r"^Config: .*got one of BaseModel .AGFL-CONFIG-130"):
        shapes.register(Config)


def test_a_class_that_is_defined_anew_takes_the_place_of_the_one_before_and_of_no_other() -> None:
    shapes = Registry(Shape, "kind")

    def make(name: str) -> type[Shape]:
        class Made(Shape):
            kind: Literal[name]  # type: ignore[valid-type]

        return Made

    first, other, again = make("circle"), make("square"), make("circle")
    for kind in (first, other, again):
        shapes.admit(kind)
    assert shapes.names == ("circle", "square")
    assert isinstance(shapes.validate({"kind": "circle"}), again)
    assert isinstance(shapes.validate({"kind": "square"}), other)
    shapes.register(make("disk"))
    taken = type("Taken", (Shape,), {"__annotations__": {"kind": Literal["disk"]}, "__module__": __name__})
    with pytest.raises(ConfigError, match="AGFL-CONFIG-132"):
        shapes.admit(taken)
    assert "disk" in shapes.names


def test_what_a_plugin_is_the_first_to_import_of_ours_is_not_its_own() -> None:
    shapes = Registry(Shape, "kind")

    class Circle(Shape):
        kind: Literal["circle"]

    class Square(Shape):
        kind: Literal["square"]

    Square.__module__ = "agfl_models.shapes.square"
    with loading("own-plugin") as one:
        shapes.register(Circle)
        shapes.register(Square)
    assert one.kinds == [Circle]
    with only_plugins(()):
        assert list(shapes.names) == ["square"]
    with only_plugins(["own-plugin"]):
        assert list(shapes.names) == ["circle", "square"]
