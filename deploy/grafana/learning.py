"""Does it learn, and does it still look around?"""

from deploy.grafana.panels import Dashboard, Panel, ratio, stored, stored_change, summed

_POLICY = 'policy=~"$policy"'
_DECISIONS = "croupier_decisions_total"


def _reward_per_item(by: str, window: str, mode: str = "") -> str:
    """Rewards per shown item; with rewards of 0 and 1 the click rate."""
    match = _POLICY + (f',mode="{mode}"' if mode else "")
    rewards = stored_change(f"croupier_reward_sum{{{match}}}", by, window, "delta")
    return ratio(rewards, stored_change(f"croupier_items_shown_total{{{match}}}", by, window))


_ROWS = {
    "Does it help": (
        Panel(
            "Click rate by mode",
            "Rewards per shown item in 5 minutes, which is the click rate where rewards are 0 and 1. The newest "
            "minutes are too low: their answers are still on the way. All modes fall: your site changed, not the "
            "policy.",
            "percentunit",
            (("{{policy}} {{mode}}", _reward_per_item("policy, mode", "5m")),),
            negative=True,
        ),
        Panel(
            "Lift over the explore slice",
            "Rewards per item of exploit over those of explore, less 1, in one hour. Below 0 for hours: what was "
            "learned does not help; is the graph of today, does the reward say what you want? See how to read lift.",
            "percentunit",
            (
                (
                    "{{policy}}",
                    f"({_reward_per_item('policy', '1h', 'exploit')})"
                    f" / ({_reward_per_item('policy', '1h', 'explore')}) - 1",
                ),
            ),
            bar=0,
            low_is_bad=True,
            negative=True,
        ),
        Panel(
            "Items behind the lift",
            "Shown items per mode in one hour. Below some 10,000 in either mode a lift of a few percent is noise: "
            "wait, or give the smaller slice more traffic.",
            "none",
            (
                (
                    "{{policy}} {{mode}}",
                    stored_change(f"croupier_items_shown_total{{{_POLICY}}}", "policy, mode", "1h"),
                ),
            ),
        ),
    ),
    "What is learned": (
        Panel(
            "Rewards learned",
            "Rewards that taught something, per policy. 0 while people click: see Outcomes in Feedback.",
            "ops",
            (
                (
                    "{{policy}}",
                    stored(f'croupier_reward_outcomes_total{{{_POLICY},outcome=~"applied|amended"}}', "policy"),
                ),
            ),
        ),
        Panel(
            "Explore share",
            "Share of decisions that explore: what it costs to go on learning. At 0 nothing new is found; ask with "
            "mode explore for some of the traffic. Without it there is no lift to compare with.",
            "percentunit",
            (
                (
                    "{{policy}}",
                    ratio(
                        summed(f'{_DECISIONS}{{{_POLICY},mode="explore"}}', "policy"),
                        summed(f"{_DECISIONS}{{{_POLICY}}}", "policy"),
                    ),
                ),
            ),
            max=1,
        ),
    ),
    "What is shown": (
        Panel(
            "Entropy of what is shown",
            "How spread the choices are, in nats: ln(n) where n items are equally likely, 0 where it is always one. "
            "Near 0 early: it has committed; is one arm really that much better?",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_arms_entropy{{{_POLICY}}})"),),
        ),
        Panel(
            "Evenness",
            "Entropy over its largest value, ln of the active items: 1 is even, 0 is always the same. Below the bar: "
            "collapsed; is one item that good, or are its rewards wrong?",
            "percentunit",
            (
                (
                    "{{policy}}",
                    ratio(
                        f"max by (policy) (croupier_arms_entropy{{{_POLICY}}})",
                        f"ln(max by (policy) (croupier_items{{{_POLICY}}}) > 1)",
                    ),
                ),
            ),
            bar=0.05,
            low_is_bad=True,
            max=1,
        ),
        Panel(
            "Active items",
            "Items that may be shown. A fall that nobody meant: a graph without some of them, or items paused and "
            "forgotten.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_items{{{_POLICY}}})"),),
        ),
        Panel(
            "Share of fresh items",
            "Plays of items that had fewer than 100 plays. 0 though items are added: nobody sees them; set fresh to "
            "first. High for long: items come faster than they are learned.",
            "percentunit",
            (
                (
                    "{{policy}}",
                    ratio(
                        stored(f"croupier_fresh_plays_total{{{_POLICY}}}", "policy"),
                        stored(f"croupier_plays_total{{{_POLICY}}}", "policy"),
                    ),
                ),
            ),
            max=1,
        ),
        Panel(
            "Distinct items shown",
            "Items played at least once. Far below the catalogue: raise alpha, or set fresh to first.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_distinct_items_shown{{{_POLICY}}})"),),
        ),
    ),
    "In the banks": (
        Panel(
            "Bank balance",
            "Sum of V over a policy's banks. It grows with noise and delay; a jump without a change of traffic means "
            "that rewards have another scale now.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_bank_balance{{{_POLICY}}})"),),
        ),
        Panel(
            "Borrowed",
            "What the classic rule has borrowed. Growth without end: answers do not come back; give the policy a "
            "default reward and a window.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_bank_borrowed{{{_POLICY}}})"),),
        ),
        Panel(
            "Learning rate",
            "How far a reward moves the chances now. It falls as answers come in; if it does not, answers do not come "
            "back.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_bank_learning_rate{{{_POLICY}}})"),),
        ),
        Panel(
            "Outstanding",
            "Invested in decisions that wait for their answer. It follows traffic and delay; growth beyond both: "
            "answers are lost on the way.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_bank_outstanding{{{_POLICY}}})"),),
        ),
        Panel(
            "Banks",
            "Banks of a policy, the shared one included. At max_segments + 1 further segments share one: raise it or "
            "use fewer segments.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_banks{{{_POLICY}}})"),),
        ),
    ),
}
LEARNING = Dashboard(
    "Learning",
    "Does it learn, does that help, and does it still look around? Look here after a change of policy or graph.",
    _ROWS,
)
