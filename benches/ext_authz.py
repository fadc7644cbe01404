"""Envoy's Check: its headers as they are (`header_map`), and as a map of text (`headers`)."""

from measure import Contest, summary
from servers import say


def run(servers, generators, args):
    contests = {form: Contest(servers, generator, args.seconds) for form, generator in generators.items()}
    for contest in contests.values():
        contest.warm_up()
    rounds = {form: [] for form in contests}
    for number in range(args.rounds):
        for form, contest in contests.items():
            say(f"ext_authz, {form}")
            rounds[form].append(contest.round(number))
    return {form: {"summary": summary(found), "rounds": found} for form, found in rounds.items()}
