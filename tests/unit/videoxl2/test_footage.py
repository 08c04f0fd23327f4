"""Rendered footage: the same seed gives the same frames, and labels say what the pixels show."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from videoxl2.training.footage import LABELS_NAME, count_pixels, footage_key, label, render_footage, write_video
from videoxl2.training.render import RenderedFrame, Renderer
from videoxl2.training.scene import Action, Bag, Camera, Person, Scene, Track
from videoxl2.training.storyboard import DEMO_CAMERAS, demo_scene


@pytest.fixture(scope="module")
def renderers() -> dict[str, Renderer]:
    return {name: Renderer(demo_scene(name, 7)) for name in DEMO_CAMERAS}


def frame_at(renderer: Renderer, t: float) -> RenderedFrame:
    return renderer.frame(int(t * renderer.scene.camera.fps))


def pixels_of(renderer: Renderer, actor_id: str, t: float) -> int:
    number = [actor.actor_id for actor in renderer.scene.actors].index(actor_id)
    return int(count_pixels(frame_at(renderer, t), len(renderer.scene.actors))[number])


def red_pixels(frame: RenderedFrame) -> int:
    """Strongly red pixels outside the places of clock and camera name, by colour alone."""
    rgb = frame.rgb_HW3[40:-40].astype(int)
    return int(((rgb[..., 0] > 110) & (rgb[..., 0] > 2 * rgb[..., 1]) & (rgb[..., 0] > 2 * rgb[..., 2])).sum())


def digest(frame: RenderedFrame) -> str:
    return hashlib.sha256(frame.rgb_HW3.tobytes() + frame.actors_HW.tobytes()).hexdigest()


@pytest.mark.parametrize("name", DEMO_CAMERAS)
def test_same_seed_same_frames_in_any_order(renderers: dict[str, Renderer], name: str) -> None:
    again = Renderer(demo_scene(name, 7))
    times = (45.0, 8.0)
    expected = {t: digest(frame_at(renderers[name], t)) for t in times}
    assert {t: digest(frame_at(again, t)) for t in reversed(times)} == expected


def test_another_seed_gives_other_frames(renderers: dict[str, Renderer]) -> None:
    other = Renderer(demo_scene("gate", 8))
    assert digest(frame_at(other, 8.0)) != digest(frame_at(renderers["gate"], 8.0))


@pytest.mark.parametrize("name", DEMO_CAMERAS)
def test_frames_have_the_cameras_size_and_are_never_twice_the_same(renderers: dict[str, Renderer], name: str) -> None:
    renderer, camera = renderers[name], DEMO_CAMERAS[name]
    first, second = renderer.frame(0), renderer.frame(1)
    assert first.rgb_HW3.shape == (camera.height, camera.width, 3) and first.rgb_HW3.dtype == np.uint8
    assert first.actors_HW.shape == (camera.height, camera.width)
    assert digest(first) != digest(second), "a real sensor is never free of noise"
    with pytest.raises(IndexError):
        renderer.frame(renderer.scene.num_frames)


def test_red_car_is_red_in_the_picture_exactly_while_it_is_there(renderers: dict[str, Renderer]) -> None:
    parking = renderers["parking"]
    before, after = [frame_at(parking, t) for t in (0.0, 2.0, 5.5)], [frame_at(parking, t) for t in (8.0, 12.0, 30.0)]
    noise = max(red_pixels(frame) for frame in before)
    assert noise < 400  # tail lights of parked cars
    for frame in after:
        assert red_pixels(frame) > noise + 1000
    assert [pixels_of(parking, "car", t) for t in (0.0, 5.0)] == [0, 0]
    assert pixels_of(parking, "car", 8.0) > 3000


def test_labels_follow_the_pixels() -> None:
    """A slower camera keeps this quick: every actor's interval is checked against what each frame shows."""
    scene = demo_scene("gate", 7)
    scene = replace(scene, camera=replace(scene.camera, fps=Fraction(2)))
    renderer = Renderer(scene)
    counts = np.stack([count_pixels(frame, len(scene.actors)) for frame in renderer.frames()])
    video = label(scene, counts)
    threshold = 1.5e-4 * scene.camera.width * scene.camera.height
    for number, item in enumerate(video.objects):
        assert item.visible, f"{item.text} never shows"
        times = [scene.frame_time_s(index) for index in range(scene.num_frames)]
        inside = np.array([any(start <= t < end for start, end in item.visible) for t in times])
        seen = counts[:, number] >= threshold
        assert not (seen & ~inside).any(), f"{item.text} shows outside its label"
        hidden = inside & ~seen
        assert not (hidden[1:] & hidden[:-1]).any(), f"{item.text} is labelled for over half a second of absence"
    by_id = {item.object_id: item for item in video.objects}
    assert by_id["walker"].attributes == {"shirt": "red", "trousers": "blue"}
    assert by_id["bag"].visible[-1][1] == video.duration_s, "the bag is left behind"
    assert by_id["courier"].visible[-1][1] < 52.0, "whoever left it is gone"
    drop = next(action for action in video.actions if action.kind == "drop")
    assert drop.text == "a person in a yellow shirt and black trousers leaves a green bag"
    for action in video.actions:
        assert any(low <= action.start_s < action.end_s <= high for low, high in by_id[action.object_id].visible)
    for start, end in video.still:
        assert not any(action.start_s < end and action.end_s > start for action in video.actions)


def test_bag_is_carried_then_lies_still(renderers: dict[str, Renderer]) -> None:
    gate = renderers["gate"]
    number = [actor.actor_id for actor in gate.scene.actors].index("bag") + 1

    def centre(t: float) -> np.ndarray:
        return np.argwhere(frame_at(gate, t).actors_HW == number).mean(axis=0)

    assert abs(centre(38.0)[1] - centre(39.5)[1]) > 20, "it moves with its carrier"
    assert np.allclose(centre(45.0), centre(59.0), atol=0.5), "it stays where it was put"


def test_walls_hide_and_open_doors_show(renderers: dict[str, Renderer]) -> None:
    gate, corridor = renderers["gate"], renderers["corridor"]
    assert pixels_of(gate, "courier", 53.0) < pixels_of(gate, "courier", 47.0) / 10, "gone behind the wall"
    assert pixels_of(corridor, "traveller", 22.1) < pixels_of(corridor, "traveller", 23.6) / 3, "still in the doorway"


def test_nothing_moves_in_a_still_stretch(renderers: dict[str, Renderer]) -> None:
    parking = renderers["parking"]
    first, last = frame_at(parking, 31.0), frame_at(parking, 40.0)
    assert (first.actors_HW == last.actors_HW).all()


def test_the_anomaly_is_labelled_and_is_the_only_one() -> None:
    flagged = {
        name: [(a.kind, a.actor_id) for a in demo_scene(name, 7).actions if a.is_anomaly] for name in DEMO_CAMERAS
    }
    assert flagged == {"gate": [], "parking": [("run", "runner"), ("flash", "parked-3")], "corridor": []}


def test_later_minutes_get_seeded_passers_by() -> None:
    scenes = [demo_scene("corridor", seed, 600.0) for seed in (1, 1, 2)]
    names = [[(a.actor_id, a.words) for a in scene.actors if a.actor_id.startswith("passer")] for scene in scenes]
    assert names[0] == names[1] != names[2]
    assert names[0]
    assert all(action.end_s <= 600.0 for action in scenes[0].actions)


def test_files_are_h264_with_the_cameras_rate_and_no_clock_in_the_container(tmp_path: Path) -> None:
    import av

    calls: list[tuple[str, int, int]] = []
    minutes = 0.1
    videos = render_footage(
        tmp_path, seed=3, minutes=minutes, cameras=["parking"], on_progress=lambda *c: calls.append(c)
    )
    assert [video.key for video in videos] == ["parking/2026-03-01/223000.mp4"]
    assert calls[-1][:1] == ("parking",) and calls[-1][2] == videos[0].num_frames == 75
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["223000.mp4", LABELS_NAME]
    with av.open(str(tmp_path / videos[0].key)) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.format.name) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (768, 432, Fraction(25, 2))
        assert stream.start_time == 0 and stream.duration * stream.time_base == 6
        assert "creation_time" not in {**container.metadata, **stream.metadata}
        keys = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.is_keyframe]
    assert keys == [0.0, 2.0, 4.0]
    line = json.loads((tmp_path / LABELS_NAME).read_text(encoding="utf-8"))
    assert line == json.loads(json.dumps(videos[0].to_dict()))
    assert line["start_local"] == "2026-03-01T22:30:00" and line["duration_s"] == 6.0


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no demo camera is called 'roof'"):
        render_footage(tmp_path, cameras=["roof"])
    with pytest.raises(ValueError, match="positive"):
        render_footage(tmp_path, minutes=0)
    with pytest.raises(ValueError, match="increasing"):
        Track(((1.0, 0, 5), (1.0, 2, 5)))
    person = Person("p", Track(((0.0, 0.0, 8.0),), is_parked_after=True), "red", "blue")
    with pytest.raises(ValueError, match="unknown actors"):
        replace(demo_scene("gate", 1), actors=(person,), actions=(Action("walk", "q", 0, 1),))
    with pytest.raises(ValueError, match="same actor_id"):
        replace(demo_scene("gate", 1), actors=(person, person), actions=())


def test_a_scene_of_ones_own(tmp_path: Path) -> None:
    """The pieces are usable without the storyboard: one camera, one person, one bag."""
    camera = Camera("yard", "gate", 160, 96, Fraction(5), 160.0, 16.0, 5.0)
    person = Person("p", Track(((0.0, 4.0, 16.0), (2.0, 0.0, 16.0)), is_parked_after=True), "orange", "black")
    bag = Bag("b", "p", "blue", dropped_s=1.0)
    start = demo_scene("gate", 1).start
    scene = Scene(camera, start, 2.0, 5, (person, bag), (Action("drop", "p", 0.8, 1.2, "b"),))
    video = write_video(tmp_path, scene)
    assert video.key == footage_key(scene) == "yard/2026-03-01/080000.mp4"
    assert [item.kind for item in video.objects] == ["person", "bag"]
    assert video.actions[0].text == "a person in an orange shirt and black trousers leaves a blue bag"
