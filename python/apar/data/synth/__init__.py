"""Made-up facts, questions about them and the right answers: what the default model is tuned on, and measured with."""

from apar.data.synth.check import AnswerCheck, Checker, DetailCheck, check_answer, summarize
from apar.data.synth.generate import synth_records, synth_rows
from apar.data.synth.requests import KINDS

__all__ = ["KINDS", "AnswerCheck", "Checker", "DetailCheck", "check_answer", "summarize", "synth_records", "synth_rows"]
