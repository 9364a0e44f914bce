"""Zero-shot and few-shot scoring: how likely is the sentence of an event?"""
