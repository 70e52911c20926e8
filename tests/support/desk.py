"""The folders that a report is made of, filled with made-up models."""

import csv
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.judge.judgement import Judgement
from lensmith.report import page as report
from tests.support.scores import passing, write_drawn
from tests.support.settings import atlas

MODEL = atlas().model_dump(mode="json")


class Desk:
    """The folders that a report is made of."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = {name: root / name for name in report.ReportFolders.__annotations__}
        self.html, self.overview = root / "report.html", root / "overview.csv"

    def add(
        self, key: str, judgement: Judgement | None = None, *, about: dict[str, Any] | None = None, **curve: str
    ) -> "Desk":
        model = MODEL | {"key": key}
        artifacts.write_json(self.folders["resolved"] / f"{key}.json", model)
        (judgement or passing()).write(self.folders["judgement"] / f"{key}.json")
        write_drawn(self.root, key, about, **curve)
        return self

    def build(self) -> str:
        report.build(report.ReportFolders(**self.folders), self.html, self.overview)
        return self.html.read_text(encoding="utf-8")

    def table(self) -> list[dict[str, str]]:
        with self.overview.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
