"""Attacks on a real server, with a polite client beside them: hostile and broken input, within a budget of minutes.

python -m tests.attack          every attack in turn, and a table of what the server held before, at its peak and afterwards
python -m tests.attack.soak     mixed load for minutes, with reloads, cancelled calls, streams, REST and scrapes
"""
