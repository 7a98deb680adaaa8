"""A demonstration: a made-up climate, the same for everybody, always, and offline.

Monthly lows and highs in °C and rain in mm of some cities, as somebody remembered them: plausible,
and from no source. They hold in the middle of each month and change evenly in between. Every answer
says so (`"source": "demo"`); whoever needs weather connects a server that measures it.
"""

from __future__ import annotations

import difflib
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple, TypedDict

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError


class Normals(NamedTuple):
    country: str
    low: tuple[int, ...]
    high: tuple[int, ...]
    rain: tuple[int, ...]


NORMALS = {
    "Amsterdam": Normals("NL", (1, 1, 3, 5, 8, 11, 13, 13, 11, 8, 5, 2),
        (6, 7, 10, 14, 17, 20, 22, 22, 19, 15, 10, 7),
        (67, 56, 53, 41, 56, 65, 78, 92, 83, 84, 82, 83)),
    "Berlin": Normals("DE", (-2, -1, 1, 5, 9, 13, 15, 14, 11, 6, 2, -1),
        (4, 5, 9, 15, 20, 23, 25, 25, 20, 14, 8, 4),
        (49, 36, 43, 31, 59, 64, 81, 61, 50, 49, 47, 46)),
    "Cairo": Normals("EG", (9, 10, 12, 15, 18, 21, 23, 23, 21, 18, 14, 11),
        (19, 21, 24, 28, 32, 34, 35, 35, 33, 30, 25, 20),
        (5, 4, 4, 1, 0, 0, 0, 0, 0, 1, 4, 6)),
    "Chicago": Normals("US", (-7, -6, 0, 5, 11, 17, 20, 19, 15, 8, 2, -4),
        (0, 2, 8, 15, 21, 27, 29, 28, 24, 17, 9, 3),
        (51, 48, 63, 96, 114, 104, 94, 108, 81, 87, 63, 54)),
    "Chisinau": Normals("MD", (-5, -4, 0, 6, 11, 15, 17, 16, 12, 7, 2, -3),
        (1, 3, 9, 16, 22, 26, 28, 28, 23, 16, 8, 3),
        (35, 32, 32, 40, 54, 68, 65, 50, 48, 42, 40, 37)),
    "Lisbon": Normals("PT", (8, 9, 11, 12, 14, 17, 18, 19, 18, 15, 12, 9),
        (15, 16, 19, 20, 23, 26, 28, 29, 27, 23, 18, 15),
        (99, 80, 68, 65, 53, 17, 5, 6, 32, 108, 126, 112)),
    "London": Normals("GB", (3, 3, 4, 6, 9, 12, 14, 14, 12, 9, 5, 3),
        (9, 9, 12, 15, 18, 21, 24, 23, 20, 16, 12, 9),
        (59, 45, 39, 42, 46, 47, 46, 53, 50, 65, 66, 57)),
    "Madrid": Normals("ES", (3, 4, 6, 8, 12, 17, 20, 20, 16, 11, 6, 4),
        (11, 13, 17, 19, 24, 30, 33, 33, 27, 20, 14, 11),
        (33, 35, 35, 47, 46, 20, 9, 10, 24, 67, 54, 43)),
    "Moscow": Normals("RU", (-9, -9, -4, 3, 9, 13, 15, 14, 9, 3, -2, -7),
        (-4, -3, 3, 12, 19, 22, 24, 22, 16, 9, 1, -3),
        (53, 44, 39, 37, 61, 78, 84, 78, 66, 70, 52, 51)),
    "Mumbai": Normals("IN", (17, 18, 21, 24, 27, 26, 25, 25, 25, 23, 21, 18),
        (31, 32, 33, 33, 34, 32, 30, 30, 31, 34, 34, 32),
        (0, 0, 0, 0, 11, 537, 920, 560, 384, 91, 11, 2)),
    "New York": Normals("US", (-2, -1, 2, 8, 13, 18, 21, 21, 17, 11, 6, 1),
        (4, 6, 10, 16, 22, 27, 30, 29, 25, 18, 12, 7),
        (92, 81, 109, 104, 101, 115, 117, 116, 109, 111, 91, 111)),
    "Oslo": Normals("NO", (-5, -5, -2, 2, 7, 11, 13, 12, 8, 3, -1, -4),
        (0, 1, 5, 11, 17, 20, 22, 21, 16, 9, 4, 0),
        (58, 45, 41, 48, 60, 79, 86, 103, 82, 90, 82, 53)),
    "Paris": Normals("FR", (3, 3, 5, 8, 11, 14, 16, 16, 13, 10, 6, 4),
        (8, 9, 13, 16, 20, 23, 26, 25, 22, 16, 11, 8),
        (47, 42, 46, 43, 69, 51, 59, 58, 45, 55, 54, 62)),
    "Rome": Normals("IT", (4, 4, 6, 8, 12, 16, 19, 19, 16, 12, 8, 5),
        (12, 13, 16, 19, 23, 28, 31, 31, 27, 22, 17, 13),
        (69, 75, 59, 65, 48, 34, 23, 33, 68, 94, 130, 81)),
    "San Francisco": Normals("US", (8, 9, 10, 10, 11, 12, 13, 13, 13, 12, 10, 8),
        (14, 16, 17, 17, 18, 19, 19, 20, 21, 21, 17, 14),
        (112, 111, 79, 36, 13, 4, 0, 1, 2, 24, 60, 119)),
    "São Paulo": Normals("BR", (19, 20, 19, 17, 15, 13, 13, 13, 15, 16, 17, 18),
        (28, 29, 28, 26, 23, 23, 23, 24, 25, 26, 27, 28),
        (288, 246, 229, 84, 66, 59, 50, 32, 83, 127, 143, 230)),
    "Singapore": Normals("SG", (24, 25, 25, 25, 26, 26, 25, 25, 25, 25, 25, 24),
        (31, 32, 32, 32, 32, 32, 31, 31, 32, 32, 31, 31),
        (222, 105, 151, 164, 164, 135, 147, 147, 125, 168, 252, 331)),
    "Sydney": Normals("AU", (20, 20, 18, 15, 12, 10, 9, 10, 12, 14, 16, 18),
        (27, 27, 25, 23, 21, 18, 18, 19, 22, 23, 24, 26),
        (92, 132, 118, 128, 99, 144, 78, 76, 64, 67, 91, 74)),
    "Tokyo": Normals("JP", (1, 2, 5, 10, 15, 19, 23, 24, 21, 15, 9, 4),
        (10, 11, 14, 19, 24, 26, 30, 31, 28, 22, 17, 12),
        (60, 57, 116, 134, 140, 168, 156, 155, 225, 235, 96, 58)),
    "Toronto": Normals("CA", (-7, -6, -2, 4, 10, 15, 18, 17, 13, 7, 2, -3),
        (-1, 0, 5, 11, 18, 24, 27, 26, 21, 14, 8, 2),
        (64, 54, 52, 77, 76, 84, 78, 74, 69, 67, 71, 58)),
    "Zurich": Normals("CH", (-1, -1, 2, 5, 9, 13, 14, 14, 11, 7, 2, 0),
        (4, 6, 10, 15, 19, 23, 25, 24, 20, 14, 8, 4),
        (60, 58, 68, 77, 123, 124, 124, 121, 91, 85, 74, 78)),
}  # fmt: skip


class Forecast(TypedDict):
    city: str
    country: str
    date: str
    low_celsius: float
    high_celsius: float
    rain_mm_month: float
    condition: str
    summary: str
    source: str


server = MCPServer("weather", log_level="WARNING")


@server.tool()
def get_forecast(city: str, date: str | None = None) -> Forecast:
    """A made-up climate, for demonstrations: a city on a day (YYYY-MM-DD; without one, today)."""
    return forecast(city, _day(date))


@server.tool()
def list_cities() -> list[str]:
    """The cities that have a forecast."""
    return sorted(NORMALS)


def forecast(city: str, day: date) -> Forecast:
    name = _city(city)
    normals = NORMALS[name]
    low, high, rain = (_on(day, values) for values in (normals.low, normals.high, normals.rain))
    condition = "snow" if rain >= 40 and high <= 2 else _condition(rain)
    return {
        "city": name,
        "country": normals.country,
        "date": day.isoformat(),
        "low_celsius": low,
        "high_celsius": high,
        "rain_mm_month": rain,
        "condition": condition,
        "summary": f"{name}, {day.day} {day:%B}: usually {low:.0f} to {high:.0f} °C, {condition}",
        "source": "demo",
    }


def _on(day: date, values: tuple[int, ...]) -> float:
    """Between the middles of two months."""
    since = (day - timedelta(days=14)).replace(day=15)
    until = (since + timedelta(days=31)).replace(day=15)
    share = (day - since) / (until - since)
    first, second = values[since.month - 1], values[until.month - 1]
    return round(first + share * (second - first), 1)


def _condition(rain: float) -> str:
    bounds = {15: "sunny", 45: "mostly dry", 75: "some rain", 150: "rainy"}
    return next((word for bound, word in bounds.items() if rain < bound), "very rainy")


def _day(text: str | None) -> date:
    if not text:
        return datetime.now(UTC).date()
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        raise ToolError(f"{text!r} is no date: write it as YYYY-MM-DD") from None


def _city(text: str) -> str:
    """As people write it: any case, with its country behind a comma or without."""
    names = {name.casefold(): name for name in NORMALS}
    wanted = text.partition(",")[0].strip().casefold().replace("sao ", "são ")
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, names, n=1)
    way_out = f"did you mean {names[near[0]]}?" if near else f"known: {', '.join(NORMALS)}"
    raise ToolError(f"there is no forecast for {text!r}: {way_out}")


def main() -> None:
    server.run()
