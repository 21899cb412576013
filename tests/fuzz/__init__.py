"""Coverage-guided fuzzing of everything that reads bytes of strangers, with atheris.

python -m tests.fuzz --seconds 60              every target in turn
python -m tests.fuzz --only contract picture
"""
