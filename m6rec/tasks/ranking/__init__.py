"""Ranking: will this user say yes to this candidate?"""
