"""Which sensor a camera has: families of models, and measured sizes."""

from __future__ import annotations

import pytest

from sharp_cog.imaging import sensors
from sharp_cog.imaging.sensors import Sensor, find_sensor, is_phone, match_sensor


@pytest.mark.parametrize(
    ("sensor", "crop_factor"),
    [
        (sensors.FULL_FRAME, 1.0),
        (sensors.APS_C, 1.53),
        (sensors.CANON_APS_C, 1.61),
        (sensors.FOUR_THIRDS, 2.0),
        (sensors.INCH_1, 2.73),
        (sensors.INCH_1_1_7, 4.6),
        (sensors.INCH_1_2_3, 5.64),
    ],
)
def test_crop_factors_are_the_published_ones(sensor: Sensor, crop_factor: float) -> None:
    assert sensor.crop_factor == pytest.approx(crop_factor, rel=0.005)


@pytest.mark.parametrize(
    ("make", "full_frame", "smaller"),
    [
        (
            "Canon",
            "EOS 5D|EOS 5DS R|EOS 6D|EOS-1Ds Mark II|EOS-1D X|EOS R|EOS RP|EOS R1|EOS R3|EOS R5|EOS R5m2|EOS R6|EOS R8",
            "EOS 7D|EOS 10D|EOS 60D|EOS D60|EOS 500D|EOS 1100D|EOS M|EOS M50m2|EOS R7|EOS R10|EOS R50|EOS R100",
        ),
        ("NIKON", "D3|D3S|D4|D5|D6|D600|D610|D700|D750|D780|D800E|D850|Df|Z 5|Z 6_2|Z6_3|Z 9|Z f", "D3X00|D1X|D2X|D40"),
        ("NIKON CORPORATION", "NIKON Z 7", "NIKON D300|NIKON D500|NIKON D5600|NIKON D7500|NIKON Z 30|NIKON Z fc"),
        ("SONY", "ILCE-7|ILCE-9M3|ILCE-1|SLT-A99V|DSLR-A900|DSC-RX1", "ILCE-6700|ILME-FX30|NEX-5|SLT-A77V|DSC-RX100"),
        ("Panasonic", "DC-S1|DC-S5M2", "DC-GH5|DMC-FZ1000|DMC-LX100"),
    ],
)
def test_full_frame_cameras_are_told_from_others(make: str, full_frame: str, smaller: str) -> None:
    names = {name: find_sensor(make, name) for name in (full_frame + "|" + smaller).split("|")}
    assert [name for name, sensor in names.items() if sensor == sensors.FULL_FRAME] == full_frame.split("|")
    assert None not in names.values()


def test_a_camera_of_a_maker_of_phones_is_no_phone() -> None:
    assert is_phone("samsung", "SM-G991B")
    assert is_phone("Sony", "XQ-BC72")
    assert not is_phone("SAMSUNG", "NX300")
    assert not is_phone("SONY", "DSC-W830")
    assert not is_phone("Canon", "Canon EOS 5D")


def test_a_measured_size_is_matched_within_its_tolerance_either_way_up() -> None:
    assert match_sensor(22.0, 15.0) == sensors.CANON_APS_C
    assert match_sensor(4.6, 6.2) == sensors.INCH_1_2_3
    assert match_sensor(30.5, 20.3) is None
    assert match_sensor(float("nan"), float("nan")) is None
