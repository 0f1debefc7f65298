"""Results for people and programs: the printed report, report.html and spectrum.json. It is given results only."""
