"""What becomes of rewards?"""

from deploy.grafana.panels import Dashboard, Panel, quantile, ratio, stored, stored_change, summed

_POLICY = 'policy=~"$policy"'
_OUTCOMES = "croupier_reward_outcomes_total"


def _share(outcomes: str) -> str:
    """The share of these outcomes among a policy's rewards."""
    these = stored(f'{_OUTCOMES}{{{_POLICY},outcome=~"{outcomes}"}}', "policy")
    return ratio(these, stored(f"{_OUTCOMES}{{{_POLICY}}}", "policy"))


_ROWS = {
    "In the log": (
        Panel(
            "Outcomes",
            "Rewards by outcome. applied and amended are learned, the others have a panel or a line in the operations "
            "page. All at 0: no client sends rewards, or the learner is away.",
            "ops",
            (("{{outcome}}", stored(f"{_OUTCOMES}{{{_POLICY}}}", "outcome")),),
            width=12,
        ),
        Panel(
            "Share not learned",
            "Share of rewards that taught nothing. It moves after a client's release: something sends twice, too late "
            "or for another policy; Outcomes says which.",
            "percentunit",
            (("{{policy}}", "1 - " + _share("applied|amended")),),
            bar=0.2,
            max=1,
            width=12,
        ),
        Panel(
            "Duplicates",
            "The same answer again. Normal where clients retry; a jump: a client does not take 202 for an answer.",
            "percentunit",
            (("{{policy}}", _share("duplicate")),),
            bar=0.1,
            max=1,
        ),
        Panel(
            "Late",
            "Rewards after their window. Above the bar: the window is too short for your users, rewards wait in a "
            "queue before they are sent, or a clock is off.",
            "percentunit",
            (("{{policy}}", _share("late")),),
            bar=0.05,
            max=1,
        ),
        Panel(
            "Gone, unfunded, out of range",
            "gone: a deleted policy, or a new graph without keeps_clusters. unfunded: slots or slates that a bank may "
            "not learn from. out_of_range: beyond the policy's min and max; which client sends it?",
            "ops",
            (
                (
                    "{{outcome}}",
                    stored(f'{_OUTCOMES}{{{_POLICY},outcome=~"gone|unfunded|out_of_range"}}', "outcome"),
                ),
            ),
        ),
    ),
    "Time": (
        Panel(
            "From decision to reward",
            "How long people take, late rewards included. p99 near the window: the window cuts answers off; make it "
            "longer (it holds for later decisions).",
            "s",
            tuple(
                (f"{{{{policy}}}} p{100 * q:g}", quantile(q, "croupier_reward_delay_seconds", _POLICY, "policy"))
                for q in (0.5, 0.9, 0.99)
            ),
        ),
        Panel(
            "Share answered",
            "Shown items that got a reward, in one hour. A fall while clicks stay: rewards are lost on their way to "
            "us.",
            "percentunit",
            (
                (
                    "{{policy}}",
                    ratio(
                        stored_change(f"croupier_items_answered_total{{{_POLICY}}}", "policy", "1h"),
                        stored_change(f"croupier_items_shown_total{{{_POLICY}}}", "policy", "1h"),
                    ),
                ),
            ),
            max=1,
        ),
        Panel(
            "Windows closing",
            "Decisions whose window closes without a further answer. It follows the decisions of a window ago; 0 "
            "while decisions come: log time stands still.",
            "ops",
            (("{{policy}}", stored(f"croupier_windows_closed_total{{{_POLICY}}}", "policy")),),
        ),
        Panel(
            "Answers kept",
            "Answers remembered until their window closes, so that a second one is seen. It costs memory: shorten the "
            "window where it grows too large.",
            "none",
            (("shard {{shard}}", 'max by (shard) (croupier_answers_kept{shard=~"$shard"})'),),
        ),
    ),
    "Refused before the log": (
        Panel(
            "Refusals by reason",
            "Rewards of HTTP clients that were refused, by reason; the client was told. bad-token: another system's "
            "ids, or altered ones. unknown-item: the decision did not show it.",
            "ops",
            (("{{reason}}", summed("croupier_refusals_total", "reason")),),
        ),
        Panel(
            "Refused by the router",
            "Rewards of the topic that were refused, by reason. Each is a dead letter: read it, mend the producer, "
            "send it back.",
            "ops",
            (("{{reason}}", summed("croupier_router_refused_total", "reason")),),
        ),
        Panel(
            "Dead letters",
            "router: letters written to the dead-letter topic. log: records that are no events (poison). Above 0 in "
            "the log: who else writes to this topic? croupier doctor lists the positions.",
            "ops",
            (
                ("router", summed("croupier_router_dead_letters_total", "")),
                ("log", stored(f'{_OUTCOMES}{{outcome="poison"}}', "")),
            ),
            bar=0.1,
        ),
    ),
}
FEEDBACK = Dashboard(
    "Feedback",
    "What becomes of rewards? Each in the log has exactly one outcome. Look here when clicks seem to be missing.",
    _ROWS,
)
