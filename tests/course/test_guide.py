"""The teaching guide's tables hold every chapter that stands, and nothing that does not."""

import pytest

from toolkit.course.chapters import chapters
from toolkit.course.guide import exercises_of, lessons, table
from toolkit.course.release import exercises


def test_every_chapter_with_exercises_is_described():
    slugs = [lesson.chapter.slug for lesson in lessons()]
    assert set(slugs) == set(exercises())
    assert slugs == [chapter.slug for chapter in chapters()]
    assert len({lesson.short for lesson in lessons()}) == len(slugs)


@pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.chapter.slug)
def test_each_goal_has_its_exercise_with_points(lesson):
    own = exercises_of(lesson.chapter)
    assert len(own) == len(lesson.goals) == 3
    assert all(exercise.points > 0 and exercise.tests > 0 for exercise in own)
    assert 10 <= lesson.chapter.reading_minutes <= 90
    assert lesson.needs


@pytest.mark.parametrize("count", [4, 12])
def test_a_syllabus_has_its_weeks_and_only_chapters_that_stand(count):
    rows = table(f"weeks-{count}").splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [str(i + 1) for i in range(count)]
    named = [lesson for lesson in lessons() if lesson.link in "\n".join(rows)]
    assert len(named) == min(len(lessons()), count if count < 8 else count - 3)


def test_tables_are_whole():
    for name in ("chapters", "goals", "weeks-12", "weeks-4"):
        rows = table(name).splitlines()
        assert len({row.count("|") for row in rows}) == 1, name


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="weeks-12"):
        table("weeks-5")
