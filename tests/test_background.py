"""What is read ahead and measured aside: the same results in the same order, errors not lost, memory bounded."""
import threading
import time

import pytest

from udl_basicsr.utils.background import Background, read_ahead, spare_threads


def test_reads_one_ahead_and_no_further():
    read = []

    def slow(key):
        read.append(key)
        return key * 10

    ahead = read_ahead(range(5), slow)
    assert next(ahead) == (0, 0)
    time.sleep(0.2)
    assert read == [0, 1]
    assert list(ahead) == [(k, 10 * k) for k in range(1, 5)]
    assert list(read_ahead([], slow)) == []


def test_an_error_of_reading_comes_at_its_key():
    def read(key):
        if key == 2:
            raise OSError('image 2')
        return key

    ahead = read_ahead(range(5), read)
    assert [next(ahead), next(ahead)] == [(0, 0), (1, 1)]
    with pytest.raises(OSError, match='image 2'):
        next(ahead)


def test_calls_run_beside_the_caller_and_keep_their_keys():
    main, threads = threading.get_ident(), []
    both = threading.Barrier(2, timeout=60)  # passes only if two calls run at the same time

    def work(key):
        threads.append(threading.get_ident())
        if key:
            both.wait()
        return key * key

    with Background(2) as aside:
        for key in range(5):
            aside.call(key, work, key)
    assert aside.results == {k: k * k for k in range(5)}
    assert threads[0] == main  # the first call sets up what the others share
    assert main not in threads[1:]


def test_waiting_calls_are_bounded():
    gate, started = threading.Event(), []

    def work(key):
        if key:
            gate.wait(10)
        started.append(key)

    def submit(aside):
        for key in range(8):
            aside.call(key, work, key)

    with Background(1) as aside:
        submitter = threading.Thread(target=submit, args=(aside, ))
        submitter.start()
        submitter.join(0.3)
        assert submitter.is_alive()  # one runs, one waits; the third has to
        gate.set()
        submitter.join(10)
    assert started == list(range(8))


def test_the_first_error_is_raised_and_nothing_hangs():
    def work(key):
        if key == 3:
            raise ValueError('metric of image 3')

    def run():
        with Background(2) as aside:
            for key in range(50):
                aside.call(key, work, key)

    with pytest.raises(ValueError, match='metric of image 3'):
        run()


def test_threads_are_shared_among_processes():
    assert spare_threads(1) >= spare_threads(2) >= 1
    assert spare_threads(10_000) == 1
