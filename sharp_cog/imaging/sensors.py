"""Sizes of camera sensors: which exist, and which of them a camera has.

The sizes of sensors are those that makers publish, as collected in https://en.wikipedia.org/wiki/Image_sensor_format.
The families below follow the names that makers give their models. They were compared with all cameras of the database
of lensfun (https://lensfun.github.io): each family agrees with its crop factor within 7 %.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sharp_cog.geometry.camera import FULL_FRAME_DIAGONAL_MM


@dataclass(frozen=True, slots=True)
class Sensor:
    """A sensor, or the part of it that makes the whole image.

    Attributes:
        width_mm: Length of the longer side in millimetres.
        height_mm: Length of the shorter side in millimetres.
    """

    width_mm: float
    height_mm: float

    @property
    def crop_factor(self) -> float:
        """Ratio of the 35 mm-equivalent focal length to the real one."""
        return FULL_FRAME_DIAGONAL_MM / math.hypot(self.width_mm, self.height_mm)


MEDIUM_FORMAT = Sensor(43.8, 32.9)
FULL_FRAME = Sensor(36.0, 24.0)
APS_H = Sensor(28.1, 18.7)
APS_C = Sensor(23.6, 15.7)
CANON_APS_C = Sensor(22.3, 14.9)
FOVEON = Sensor(20.7, 13.8)
CANON_INCH_1_5 = Sensor(18.7, 14.0)
FOUR_THIRDS = Sensor(17.3, 13.0)
INCH_1 = Sensor(13.2, 8.8)
INCH_2_3 = Sensor(8.8, 6.6)
INCH_1_1_3 = Sensor(9.7, 7.3)
INCH_1_1_6 = Sensor(8.0, 6.0)
INCH_1_1_7 = Sensor(7.53, 5.64)
INCH_1_1_8 = Sensor(7.18, 5.32)
INCH_1_2 = Sensor(6.4, 4.8)
INCH_1_2_3 = Sensor(6.17, 4.55)
INCH_1_2_5 = Sensor(5.76, 4.29)
INCH_1_2_7 = Sensor(5.3, 4.0)
INCH_1_3 = Sensor(4.8, 3.6)
INCH_1_3_2 = Sensor(4.54, 3.42)

EXISTING = (
    *(MEDIUM_FORMAT, FULL_FRAME, APS_H, APS_C, CANON_APS_C, FOVEON, CANON_INCH_1_5, FOUR_THIRDS, INCH_1, INCH_1_1_3),
    *(INCH_2_3, INCH_1_1_6, INCH_1_1_7, INCH_1_1_8, INCH_1_2, INCH_1_2_3, INCH_1_2_5, INCH_1_2_7, INCH_1_3, INCH_1_3_2),
)
"""Sensors with which a measured size is compared."""

# Make, model and sensor; the first family that matches counts, so that exceptions come before their family. Each
# expression is searched in the lower-case text of the tag, and in the model from its beginning on, after the maker's
# name.
_FAMILIES: tuple[tuple[str, str, Sensor], ...] = (
    # Interchangeable lenses, which seldom come with a 35 mm tag.
    ("canon", r"eos[- ]?(1ds|1d ?[xc]|5d|5ds|6d|r[p1356a8]?\b|r[568]? ?m)", FULL_FRAME),
    ("canon", r"eos[- ]?1d\b", APS_H),
    ("canon", r"eos", CANON_APS_C),
    ("nikon", r"(d[3-6][xs]?|d6[01]0|d7[058]0|d8[015]0[ae]?|df|z ?[5-9](_?[23]|ii|iii)?|z ?f)( |$)", FULL_FRAME),
    ("nikon", r"(d\d|z ?(30|50|fc)|coolpix a$)", APS_C),
    ("nikon", r"(1 [svj]\d|1 aw\d|dl)", INCH_1),
    ("sony", r"(ilce-[179]|ilme-fx[369]$|zv-e1$|slt-a99|ilca-99|dslr-a[89]\d\d|dsc-rx1(r|$)|nex-vg900)", FULL_FRAME),
    ("sony", r"ilce-qx1", APS_C),
    ("sony", r"(ilce|ilca|ilme|slt|dslr|nex|zv-e)", APS_C),
    ("sony", r"dsc-r1$", Sensor(21.5, 14.4)),
    ("sony", r"(dsc-rx10|dsc-rx0|zv-1)", INCH_1),
    ("fuji", r"gfx", MEDIUM_FORMAT),
    ("fuji", r"(finepix ?)?(x10|x20|x30|x-s1|xq\d)( |$)", INCH_2_3),
    ("fuji", r"((finepix ?)?x100|x-|x70|xf10|x half|(finepix ?)?(s[1235] ?pro|is pro))", APS_C),
    ("olympus", r"e-[12]0", INCH_2_3),
    ("olympus|om digital", r"(e-[1-6]\d{0,2}( |$)|e-(m\d|p\d|pl\d|pm\d)|pen-?f|om-?\d|air)", FOUR_THIRDS),
    ("panasonic", r"dc-s\d", FULL_FRAME),
    ("panasonic", r"(dmc-l1$|dmc-l10$|(dmc|dc)-g|(dmc|dc)-bgh)", FOUR_THIRDS),
    ("panasonic", r"(dmc|dc)-lx100", Sensor(15.6, 11.7)),
    ("panasonic", r"((dmc|dc)-(fz1000|fz10002|fz[28]\d00|lx1[05]$|cm1|tz[12]\d\d|zs[12]\d\d))", INCH_1),
    ("pentax|ricoh", r"(pentax )?645", MEDIUM_FORMAT),
    ("pentax|ricoh", r"(pentax )?k-1( |$)", FULL_FRAME),
    ("pentax|ricoh", r"(pentax )?q(10)?( |$)", INCH_1_2_3),
    ("pentax|ricoh", r"(pentax )?q(7|-s1)", INCH_1_1_7),
    ("pentax|ricoh", r"gr digital", INCH_1_1_8),
    ("pentax|ricoh", r"(pentax |ricoh )?(\*ist|k-?\d|k-?[mxrs]|k\d+d|kp|kf|gr( |$)|gr ii|gr2)", APS_C),
    ("samsung", r"nx ?mini", INCH_1),
    ("samsung", r"(samsung )?(nx|gx|ek-gn)", APS_C),
    ("konica|minolta", r"(dynax|maxxum|alpha(-7)?|alpha sweet)", APS_C),
    ("sigma", r"(sigma )?fp", FULL_FRAME),
    ("sigma", r"(sigma )?(sd1( |$)|dp\d (merrill|quattro)|sd quattro$)", APS_C),
    ("sigma", r"(sigma )?(sd(9|10|14|15)|dp\d[sx]?$)", FOVEON),
    ("leica", r"(leica )?(t |tl|cl( |$)|x|typ 70)", APS_C),
    ("leica", r"(leica )?(sl|q\d?( |$)|m(-[pe]|\d+|9)? |m(9|1\d)|m monochrom)", FULL_FRAME),
    ("leica", r"(leica )?m8", APS_H),
    ("leica", r"(leica )?(digilux 3)", FOUR_THIRDS),
    ("leica", r"(leica )?(digilux 2)", INCH_2_3),
    ("leica", r"(leica )?(c-lux|v-lux \(|v-lux 5)", INCH_1),
    ("kodak", r"(kodak )?dcs ?pro", FULL_FRAME),
    ("epson", r"r-d1", APS_C),
    ("hasselblad", r"(l1d|l1-20)", INCH_1),
    ("hasselblad", r"(l2d)", FOUR_THIRDS),
    ("hasselblad", r"(x1d|x2d|cfv|907x)", MEDIUM_FORMAT),
    # Drones and action cameras.
    ("dji", r"(fc6310|fc6510|fc3411|l1d)", INCH_1),
    ("dji", r"(fc550|fc6520|l2d|m3e|m3m)", FOUR_THIRDS),
    ("dji", r"fc6540", APS_C),
    ("dji", r"(fc3582|fc3682|fc8482|fc8282|fc8671)", INCH_1_1_3),
    ("dji", r"(fc200$|phantom vision)", INCH_1_2_5),
    ("dji", r"(phantom 3|mavic (pro|air)|fc(2103|220|2200|2204|300|330|350|720\d|730\d|3170)|m3t)", INCH_1_2_3),
    ("gopro", r"", INCH_1_2_3),
    # Compacts. Those of Canon have focal-plane tags too, but editors damage these.
    ("canon", r"powershot (g1 ?x mark iii)", CANON_APS_C),
    ("canon", r"powershot g1 ?x", CANON_INCH_1_5),
    ("canon", r"powershot (g3 ?x|g5 ?x|g7 ?x|g9 ?x|v10|v1$)", INCH_1),
    ("canon", r"powershot (pro1)$", INCH_2_3),
    ("canon", r"powershot (g9|g1[0-6]|s9\d|s1[0-2]0)$", INCH_1_1_7),
    ("canon", r"powershot (g[1-7]|s[4-8]0|s400|s410|s500|a6[1-4]0|a80|a95)$", INCH_1_1_8),
    ("canon", r"powershot (sx[1-7]\d{1,2})( |$)", INCH_1_2_3),
    ("nikon", r"(coolpix p[67]\d00|coolpix p3[0-4]0)", INCH_1_1_7),
    ("nikon", r"e(8800|8700|5700|5000|8400)$", INCH_2_3),
    ("nikon", r"e(99[05]|4500|5400|7900|7600|5900|5200|4200)$", INCH_1_1_8),
    ("nikon", r"coolpix (p[5-9]\d\d|p1000|l\d\d\d|s[39]\d{3}|aw1\d\d|w[13]00|b[57]00)", INCH_1_2_3),
    ("sony", r"(dsc-f828)", INCH_2_3),
    ("sony", r"(dsc-hx|dsc-wx|dsc-tx)", INCH_1_2_3),
    ("sony", r"(dsc-v[13]|dsc-p1[05]0|dsc-p200|dsc-f717)$", INCH_1_1_8),
    ("panasonic", r"(dmc-lf1|dmc-lx5)$", INCH_1_1_7),
    ("panasonic", r"((dmc|dc)-(fz[1-3]00|fz330|fz[67]\d|fz8\d|tz[2-9]\d|zs[2-9]\d|ft\d))", INCH_1_2_3),
    ("fuji", r"finepix (s[89]\d\d\d|f1[01]|f[23]\d|s7000|s602|f6\d\d|f7\d\d|e550)( |$|z)", INCH_1_1_7),
    ("fuji", r"finepix (hs\d|f[5-9]\d\dexr|xp\d|s[48]\d\d\d)", INCH_1_2),
    ("olympus", r"(xz-\d|stylus ?1)", INCH_1_1_7),
    ("olympus", r"(tg-\d)", INCH_1_2_3),
    ("olympus", r"c8080wz", INCH_2_3),
    ("olympus", r"(c[2345]0[456]0z|c5060wz|c70[07]0|c7070)", INCH_1_1_8),
    ("minolta", r"dimage (a\d|7|a200)", INCH_2_3),
    ("minolta", r"dimage (z[2-6]|z[12]0|g400)", INCH_1_2_5),
    ("minolta", r"dimage (z1|x|xi|xt)$", INCH_1_2_7),
    ("sony", r"dsc-(p93|w1|w5|w7|w12|w15|s75|s85)$", INCH_1_1_8),
    ("sony", r"dsc-(h[1-5]|t[1-9]|w[358]\d|n[12])$", INCH_1_2_5),
    ("sony", r"dsc-(s[6-9]0|st80|p[37]\d)$", INCH_1_2_7),
    ("panasonic", r"dmc-(fz[35]0)$", INCH_1_1_8),
    ("panasonic", r"dmc-(fz(5|7|8|10|18|20)|lz\d|fx[1-9])$", INCH_1_2_5),
    ("panasonic", r"dmc-(fz(28|35|38|4[05]))$", INCH_1_2_3),
    ("olympus", r"(c700uz|c730uz|c860l)", INCH_1_2_7),
    ("olympus", r"(c7[5-7]0uz|sp5[05]0uz|sp560uz)", INCH_1_2_5),
    ("olympus", r"(sp3[125]0|c4100z|x-2)", INCH_1_1_8),
    ("pentax|asahi", r"(pentax )?optio (430|450|550|555|750z)$", INCH_1_1_8),
    ("pentax|asahi", r"(pentax )?optio (33l|33lf|230gs|330gs|43wr)$", INCH_1_2_7),
    ("nikon", r"e(950)$", INCH_1_2),
    ("nikon", r"e(2[0-9]00|3[1-9]00)$", INCH_1_2_7),
    ("casio", r"(ex-z750|ex-p[67]00|qv-[34]\d\d\d)", INCH_1_1_8),
    ("casio", r"ex-z(3|4|30|40|50|55|57)$", INCH_1_2_5),
    ("casio", r"ex-fh20", INCH_1_2_3),
    ("kodak", r"(kodak )?cx6\d30", INCH_1_2_7),
    ("kodak", r"(kodak )?cx75\d5", INCH_1_2_5),
    ("fuji", r"finepix (s5500|s5100|s304|3800|s3000|2800)", INCH_1_2_7),
    ("ricoh", r"caplio gx8?$", INCH_1_1_8),
)

_MAKER_IN_MODEL = re.compile(r"^(canon|nikon|sony|fujifilm|olympus|panasonic|hasselblad|dji|gopro)\s+")
_PHONE_MAKES = re.compile(
    r"^(apple|google|samsung|xiaomi|redmi|poco|huawei|honor|oppo|oneplus|vivo|realme|htc|lge?\b|lg |motorola|nokia|hmd|"
    r"nothing|fairphone|meizu|zte|lenovo|asus|tcl|alcatel|blackberry|research in motion|palm|microsoft|sony ericsson|"
    r"sonyericsson|essential|infinix|tecno|itel|wiko|bq$|umidigi|doogee|oukitel|blackview|ulefone|sharp$|kyocera)"
)
_OTHER_THAN_PHONES = re.compile(
    # Cameras of makers that make phones too. Sony's phones have a make of their own only until 2012.
    r"^(samsung |<|nx|wb|es\d|ex\d|st\d|pl\d|ek-gn|sl\d|tl\d|hz\d|digimax|dv\d|mv\d|sh\d|gx|gear 360|sm-[cr]2\d\d$)"
)
_SONY_PHONES = re.compile(r"^(xq-|so-|sov|xperia|sgp|[cdefghijl]\d{4}|lt\d\d|st\d\d|mt\d\d|pf\d|802so|701so)")


def find_sensor(make: str, model: str) -> Sensor | None:
    """Return the sensor of a camera, by the tags `Make` and `Model` of EXIF; None if it is not known."""
    make, model = _plain(make), _plain(model)
    makers = make or model  # Some programs keep the model alone, which often begins with the maker's name.
    model = _MAKER_IN_MODEL.sub("", model)
    for maker, family, sensor in _FAMILIES:
        if re.search(maker, makers) and re.match(family, model):
            return sensor
    return None


def is_phone(make: str, model: str) -> bool:
    """Return whether a camera is a phone's, by the tags `Make` and `Model` of EXIF."""
    make, model = _plain(make), _plain(model)
    if make == "sony":
        return _SONY_PHONES.match(model) is not None
    return _PHONE_MAKES.match(make) is not None and _OTHER_THAN_PHONES.match(model) is None


def match_sensor(width_mm: float, height_mm: float, *, tolerance: float = 0.05) -> Sensor | None:
    """Return the sensor that has a measured size.

    Args:
        width_mm: Measured length of one side in millimetres.
        height_mm: Measured length of the other side.
        tolerance: Largest relative difference of each side.

    Returns:
        The nearest sensor that exists; None if none is near.
    """
    long_mm, short_mm = max(width_mm, height_mm), min(width_mm, height_mm)

    def difference(sensor: Sensor) -> float:
        return max(abs(long_mm / sensor.width_mm - 1), abs(short_mm / sensor.height_mm - 1))

    nearest = min(EXISTING, key=difference)
    return nearest if difference(nearest) <= tolerance else None


def _plain(text: str) -> str:
    return " ".join(text.replace("\0", " ").lower().split())
