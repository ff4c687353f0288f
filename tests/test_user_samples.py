"""Samples of a domain's users."""

from fedecider.domains import some_users


def test_user_samples_are_nested_and_sorted():
    users = [f"u{number}" for number in range(40)]
    small, large = some_users(reversed(users), 5), some_users(users, 20)
    assert small == sorted(small) and set(small) < set(large)
    assert some_users(users, None) == some_users(users, 99) == sorted(users)
