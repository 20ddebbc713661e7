"""Templates: PromptSource's form and semantics, and nothing run by them."""

import doctest
import importlib

import pytest

from peft_jax.tasks import promptsource, sandbox, templates
from peft_jax.tasks.few_shot_data import DATA
from peft_jax.tasks.templates import Rendered, Template, TemplateError

PROMPTSOURCE = "promptsource/templates"


def template(jinja, choices=None, **kwargs):
  return Template(name="mine", jinja=jinja, answer_choices=choices, **kwargs)


@pytest.mark.parametrize(
  "name",
  [
    "few_shot",
    "few_shot_sampling",
    "prepare",
    "prompting",
    "promptsource",
    "sandbox",
    "sources",
    "t0_mixture",
    "templates",
  ],
)
def test_examples(name):
  module = importlib.import_module(f"peft_jax.tasks.{name}")
  assert doctest.testmod(module).failed == 0


def test_a_row_in_words():
  found = template(
    "{{a}} or {{ b }}?  ||| \n {{ answer_choices[label] }} ",
    "{{a}} ||| {{b}} ||| both",
  ).render({"a": "one", "b": "two", "label": 2})
  assert found == Rendered(
    inputs="one or two?", target="both", choices=("one", "two", "both")
  )


def test_a_separator_in_a_row_is_text():
  row = {"a": "x ||| y"}
  found = template("{{a}} ||| no", "{{a}} ||| no").render(row)
  assert found == Rendered(
    inputs="x ||| y", target="no", choices=("x ||| y", "no")
  )


def test_a_template_that_is_not_meant_for_a_row():
  some = template("{% if kind == 'a' %}{{kind}} ||| {{kind}}{% endif %}")
  assert some.render({"kind": "b"}) is None
  assert some.render({"kind": "a"}) is not None
  with pytest.raises(TemplateError, match=r"one \|\|\| between .*, found 2"):
    template("a ||| b ||| c").render({})


def test_long_values_are_cut_as_promptsource_cuts_them():
  row = {"text": "word " * 1000}
  inputs = template("{{text}} ||| x").render(row).inputs
  # Jinja's truncate: at a word's end, with the dots inside the length.
  assert inputs == "word " * 408 + "word..."
  whole = template("{{text}} ||| x").render(row, max_chars=0).inputs
  assert whole == row["text"].strip()
  # It is the last value that the filter is for.
  pair = template("{{text + text}} ||| x").render(row).inputs
  assert pair == row["text"] + inputs
  assert template("{{ text -}} ||| x").render({"text": "a"}).inputs == "a"


def test_promptsources_filters_and_globals():
  row = {"xs": ["b", "a", "b"], "ys": [1, 2, 3]}
  drawn = template("{{ xs | choice }} ||| {{ ys | random }}")
  assert drawn.render(row, seed=1) == drawn.render(row, seed=1)
  many = {drawn.render(row, seed=seed).target for seed in range(30)}
  assert many == {"1", "2", "3"}
  assert template("{{xs|most_frequent|join}} ||| x").render(row).inputs == "b"
  assert sandbox.most_frequent([]) is None
  pairs = "{% for x, y in zip(xs, ys) %}{{x}}{{y}}{% endfor %} ||| x"
  assert template(pairs).render(row).inputs == "b1a2b3"
  numbered = "{% for i, x in enumerate(xs) %}{{i}}{{x}}{% endfor %} ||| x"
  assert template(numbered).render(row).inputs == "0b1a2b"
  marked = template("{{'a'|highlight}} ||| x").render(row).inputs
  assert marked == "<span style='color: #F08080'>a</span>"
  assert template("{{ xs.append('c') or '' }}{{ xs | length }} ||| x").render(
    row
  ).inputs == ("4")
  assert row["xs"] == ["b", "a", "b"]


@pytest.mark.parametrize(
  "code",
  [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__ }}",
    "{{ x|attr('__class__') }}",
    "{{ [x]|map(attribute='__class__')|list }}",
    "{{ x['__class__'] }}",
    "{{ ''.format.__globals__ }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ cycler.__init__.__globals__.os.popen('id') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.mro() }}",
    "{{ self._TemplateReference__context }}",
    "{{ lipsum() }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ range(10**9) | list }}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}"
    "{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ 10**(10**9) }}",
    "{% set ns = namespace(n=10) %}{% for i in range(60) %}"
    "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x = {'a': ns.x, 'b': ns.x } %}{% endfor %}{{ ns.x }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' | format(10**9, 1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ ('a' * 9999).replace('a', 'a' * 9999) }}",
    "{{ ('a' * 9999) | replace('a', 'a' * 9999) }}",
    "{{ ('a' * 9999) | join('a' * 9999) }}",
    "{{ ('a' * 9999).join(['a'] * 9999) }}",
    "{{ x | center(10**9) }}",
    "{{ 1 / 0 }}",
    "{{ missing.field }}",
    "{{ unclosed",
  ],
)
@pytest.mark.parametrize("cut", [0, 2048])
def test_code_and_endless_work_are_refused(code, cut):
  bad = template(f"a ||| {code}", dataset="evil/set")
  expected = r"template 'mine' of evil/set: expected .* Correct the template"
  with pytest.raises(TemplateError, match=expected):
    bad.render({"x": "hello"}, max_chars=cut)


def test_fields_that_a_row_lacks():
  asks = template("{{a}} {% set c = 1 %}{{c}} ||| {{answer_choices[b]}}", "x")
  assert asks.fields == {"a", "b"}
  asks.check_fields({"a": 1, "b": 2, "more": 3})
  with pytest.raises(TemplateError, match="fields a, b, found a: b missing"):
    asks.check_fields({"a": 1})
  with pytest.raises(TemplateError, match="a row without `answer_choices`"):
    asks.render({"answer_choices": []})
  with pytest.raises(TemplateError, match="include"):
    _ = template("{% include 'x' %}").fields


def test_a_template_by_name_or_number():
  found = [Template(name=name, jinja="a ||| b") for name in ("y", "x")]
  assert [templates.named(found, c).name for c in (0, 1, "y")] == [*"xyy"]
  with pytest.raises(TemplateError, match="0 'x', 1 'y', found 2"):
    templates.named(found, 2)
  with pytest.raises(TemplateError, match="found 'z'"):
    templates.named(found, "z")


GOOD = """dataset: super_glue
subset: rte
templates:
  1f: !Template
    name: plain
    id: 1f
    jinja: '{{premise}} ||| {{answer_choices[label]}}'
    answer_choices: Yes ||| No
    metadata: !TemplateMetadata
      original_task: true
      choices_in_prompt: null
      metrics: [Accuracy]
      languages: [en]
    reference: ''
"""


def test_a_folder_of_templates(tmp_path):
  folder = tmp_path / "super_glue" / "rte"
  folder.mkdir(parents=True)
  (folder / "templates.yaml").write_text(GOOD)
  (found,) = promptsource.read("super_glue", subset="rte", folder=tmp_path)
  assert found == Template(
    name="plain",
    jinja="{{premise}} ||| {{answer_choices[label]}}",
    answer_choices="Yes ||| No",
    original_task=True,
    metrics=("Accuracy",),
    languages=("en",),
    dataset="super_glue/rte",
  )
  assert promptsource.list_datasets(tmp_path) == [("super_glue", "rte")]
  with pytest.raises(TemplateError, match="Nearest of 1: super_glue/rte"):
    promptsource.read("super_glue", subset="rt", folder=tmp_path)
  with pytest.raises(TemplateError, match="a folder of templates"):
    promptsource.list_datasets(tmp_path / "none")


@pytest.mark.parametrize(
  ("change", "found"),
  [
    (("!Template\n", "!!python/object/apply:os.system ['id']\n"), "Error"),
    (("!Template\n", "!Other\n"), "ConstructorError"),
    (("templates:", "others:"), "no `templates`"),
    (("name: plain", "name: 7"), "name is 7"),
    (("jinja: '", "text: '"), "jinja is None"),
    (("{{premise}}", "{{premise"), "TemplateSyntaxError"),
    (("{{premise}}", '{% include "x" %}'), "include"),
  ],
)
def test_files_that_are_no_templates(tmp_path, change, found):
  path = tmp_path / "templates.yaml"
  path.write_text(GOOD.replace(*change))
  with pytest.raises(TemplateError, match=found):
    promptsource.read_file(path)


def test_two_templates_of_one_name(tmp_path):
  path = tmp_path / "templates.yaml"
  again = GOOD[GOOD.index("  1f:") :].replace("1f", "2f")
  path.write_text(GOOD + again)
  with pytest.raises(TemplateError, match="two of the name 'plain'"):
    promptsource.read_file(path)
  path.write_text("templates: {a: 1}")
  with pytest.raises(TemplateError, match="a template that is 1"):
    promptsource.read_file(path)


def test_own_templates_are_there_for_every_data_set():
  folders = set(promptsource.list_datasets(promptsource.OWN))
  assert folders == {data.templates for data in DATA.values()}
  for dataset, subset in folders:
    found = promptsource.read(dataset, subset=subset)
    assert len(found) >= 3
    assert all(t.original_task and t.answer_choices for t in found)


def test_all_of_promptsource_parses(shared_data):
  folder = shared_data(PROMPTSOURCE)
  names = promptsource.list_datasets(folder)
  assert len(names) == 279
  found = [promptsource.read(d, subset=s, folder=folder) for d, s in names]
  assert sum(map(len, found)) == 2_085


@pytest.mark.parametrize(
  ("subset", "count"),
  [("rte", 10), ("cb", 15), ("copa", 12), ("wic", 10), ("wsc.fixed", 10)],
)
def test_promptsources_original_tasks(shared_data, subset, count):
  found = promptsource.read(
    "super_glue", subset=subset, folder=shared_data(PROMPTSOURCE)
  )
  assert sum(t.original_task for t in found) == count
