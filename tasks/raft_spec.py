"""RAFT's 11 tasks (arXiv 2109.14076) as plain values, and their text.

Fields and their order, label strings and numbers of rows are RAFT's; the
instructions are short ones of ours, for folders that have none.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

# Labelled rows of every task, and how many of them a fold holds out.
NUM_TRAIN = 50
NUM_HELD_OUT = 10
# The ids of a test set follow those of the training set.
FIRST_TEST_ID = NUM_TRAIN

ENDING = "\nLabel:"

LabelList = Literal["comma", "numbered", "none"]
FieldOrder = Literal["settings", "columns"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What one task of RAFT is made of.

  Attributes:
    name: RAFT's; the task is `raft_<name>`.
    fields: the columns that are shown, in the order of T-Few's settings.
    labels: the label strings, in RAFT's order.
    num_test: rows without a label.
    instruction: what is asked, in our words.
  """

  name: str
  fields: tuple[str, ...]
  labels: tuple[str, ...]
  num_test: int
  instruction: str

  @property
  def task_name(self) -> str:
    """The name in SeqIO's registry."""
    return f"raft_{self.name}"

  @property
  def test_ids(self) -> range:
    """The ids that a submission must have."""
    return range(FIRST_TEST_ID, FIRST_TEST_ID + self.num_test)

  def label_texts(self, *, clean: bool = False) -> tuple[str, ...]:
    """Returns the labels as the model reads and writes them.

    Example:
      >>> SPECS["banking_77"].label_texts(clean=True)[3]
      'apple pay or google pay'

    Args:
      clean: blanks for the underscores of Banking77's labels, as T-Few's
        `cleaned_answer_choices_b77`.
    """
    if not clean:
      return self.labels
    return tuple(label.replace("_", " ") for label in self.labels)


_BANKING_77 = """
Refund_not_showing_up activate_my_card age_limit apple_pay_or_google_pay
atm_support automatic_top_up balance_not_updated_after_bank_transfer
balance_not_updated_after_cheque_or_cash_deposit beneficiary_not_allowed
cancel_transfer card_about_to_expire card_acceptance card_arrival
card_delivery_estimate card_linking card_not_working card_payment_fee_charged
card_payment_not_recognised card_payment_wrong_exchange_rate card_swallowed
cash_withdrawal_charge cash_withdrawal_not_recognised change_pin
compromised_card contactless_not_working country_support declined_card_payment
declined_cash_withdrawal declined_transfer direct_debit_payment_not_recognised
disposable_card_limits edit_personal_details exchange_charge exchange_rate
exchange_via_app extra_charge_on_statement failed_transfer fiat_currency_support
get_disposable_virtual_card get_physical_card getting_spare_card
getting_virtual_card lost_or_stolen_card lost_or_stolen_phone
order_physical_card passcode_forgotten pending_card_payment
pending_cash_withdrawal pending_top_up pending_transfer pin_blocked
receiving_money request_refund reverted_card_payment?
supported_cards_and_currencies terminate_account top_up_by_bank_transfer_charge
top_up_by_card_charge top_up_by_cash_or_cheque top_up_failed top_up_limits
top_up_reverted topping_up_by_card transaction_charged_twice
transfer_fee_charged transfer_into_account
transfer_not_received_by_recipient transfer_timing unable_to_verify_identity
verify_my_identity verify_source_of_funds verify_top_up
virtual_card_not_working visa_or_mastercard why_verify_identity
wrong_amount_of_cash_received wrong_exchange_rate_for_cash_withdrawal
"""

SPECS: Mapping[str, Spec] = {
  spec.name: spec
  for spec in (
    Spec(
      name="ade_corpus_v2",
      fields=("Sentence",),
      labels=("ADE-related", "not ADE-related"),
      num_test=5000,
      instruction=(
        "Say whether the sentence reports a harmful effect of a drug that was"
        " taken as a treatment, an adverse drug effect (ADE)."
      ),
    ),
    Spec(
      name="banking_77",
      fields=("Query",),
      labels=tuple(_BANKING_77.split()),
      num_test=5000,
      instruction=(
        "Say which of 77 topics this question of a bank's customer is about."
      ),
    ),
    Spec(
      name="terms_of_service",
      fields=("Sentence",),
      labels=("not potentially unfair", "potentially unfair"),
      num_test=5000,
      instruction=(
        "Say whether this sentence of a contract for a service may be unfair:"
        " nobody bargained for it, and it takes rights from the consumer or"
        " lays duties on him."
      ),
    ),
    Spec(
      name="tai_safety_research",
      fields=(
        "Title",
        "Abstract Note",
        "Publication Title",
        "Item Type",
        "Publication Year",
      ),
      labels=("TAI safety research", "not TAI safety research"),
      num_test=1639,
      instruction=(
        "Transformative AI (TAI) would change the world as much as farming or"
        " industry did. Say whether the paper is serious research on making it"
        " safe, written for researchers."
      ),
    ),
    Spec(
      name="neurips_impact_statement_risks",
      fields=("Impact statement", "Paper title"),
      labels=(
        "doesn't mention a harmful application",
        "mentions a harmful application",
      ),
      num_test=150,
      instruction=(
        "Say whether the impact statement names a harmful use of the paper's"
        " own research, not only a harm that the research prevents."
      ),
    ),
    Spec(
      name="overruling",
      fields=("Sentence",),
      labels=("not overruling", "overruling"),
      num_test=2350,
      instruction=(
        "Say whether this sentence of a court or a law overrules an earlier"
        " decision, so that it is no precedent any more."
      ),
    ),
    Spec(
      name="systematic_review_inclusion",
      fields=("Title", "Abstract", "Journal"),
      labels=("included", "not included"),
      num_test=2244,
      instruction=(
        "Say whether the paper is to be included: only systematic reviews, in"
        " English and peer reviewed, of what makes people give money to"
        " charity."
      ),
    ),
    Spec(
      name="one_stop_english",
      fields=("Article",),
      labels=("advanced", "elementary", "intermediate"),
      num_test=518,
      instruction=(
        "Say for which level of adults who learn English the newspaper article"
        " was rewritten."
      ),
    ),
    Spec(
      name="tweet_eval_hate",
      fields=("Tweet",),
      labels=("hate speech", "not hate speech"),
      num_test=2966,
      instruction=(
        "Say whether the tweet is hate speech against women or immigrants: it"
        " runs them down for what they are."
      ),
    ),
    Spec(
      name="twitter_complaints",
      fields=("Tweet text",),
      labels=("complaint", "no complaint"),
      num_test=3399,
      instruction=(
        "Say whether the tweet complains: something was worse than its writer"
        " had a right to expect."
      ),
    ),
    Spec(
      name="semiconductor_org_types",
      fields=("Organization name", "Paper title"),
      labels=("company", "research institute", "university"),
      num_test=449,
      instruction=(
        "Say which kind of organization wrote this paper for a conference on"
        " semiconductors."
      ),
    ),
  )
}


def heading(
  instruction: str, *, labels: Sequence[str], listed: LabelList
) -> str:
  r"""Returns what stands above the fields: the instruction and the labels.

  Example:
    >>> heading("Which?", labels=("a", "b"), listed="comma")
    'Which? Possible labels: a, b'
    >>> heading("Which?", labels=("a", "b"), listed="numbered")
    'Which?\nPossible labels:\n1. a\n2. b'
    >>> heading("Which?", labels=("a", "b"), listed="none")
    'Which?'

  Args:
    instruction: what is asked.
    labels: as the model writes them.
    listed: how they are shown, as T-Few's `raft_labels_in_input_string`
      'comma', 'newline' or anything else.
  """
  instruction = instruction.strip()
  if listed == "comma":
    return f"{instruction} Possible labels: {', '.join(labels)}"
  if listed == "numbered":
    lines = [f"{n}. {label}" for n, label in enumerate(labels, start=1)]
    return "\n".join([instruction, "Possible labels:", *lines])
  return instruction


def field_texts(row: Mapping[str, str], fields: Sequence[str]) -> list[str]:
  r"""Returns a line for each field that says something, in the given order.

  Example:
    >>> field_texts({"Title": " Fish", "Year": ""}, ("Year", "Title"))
    ['\nTitle: Fish']
  """
  found = {name: row[name].strip() for name in fields}
  return [f"\n{name}: {text}" for name, text in found.items() if text]


def kept_tokens(lengths: Sequence[int], room: int) -> list[int]:
  """Returns how many tokens each field keeps, so that all fit.

  The longest field gives way, token by token from its end, until another is as
  long; of fields that are equally long the later gives way first.

  Example:
    >>> kept_tokens([3, 9, 8], room=14)
    [3, 6, 5]

  Args:
    lengths: tokens of each field.
    room: tokens there is room for, 0 or more.
  """
  kept = list(lengths)
  for _ in range(sum(lengths) - room):
    longest = max(range(len(kept)), key=lambda i: (kept[i], i))
    kept[longest] -= 1
  return kept
