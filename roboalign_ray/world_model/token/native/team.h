/* Threads that share the work of one call.
 *
 * A job is a row of stages, each of them cut into items that do not depend on one another. Nobody owns an item: whoever
 * is free takes the next few. A thread that the operating system has stopped therefore delays only the items in its
 * hands, and none if it has none. Whoever finishes a stage's last item opens the next stage.
 *
 * Waiting is bounded: a thread watches for SPIN_NS, which is what a stage's end takes while all threads run, and then
 * sleeps. A sleeping thread leaves its core to whatever else is on the machine, or to the very thread it waits for;
 * threads that watch without end (as OpenMP's do by default) take turns with it instead, a time slice each.
 *
 * All that a thread needs to take items is one 64-bit word: stage << 32 | threads << 24 | items left. Stages are
 * numbered across jobs, so a thread that slept through a job cannot take anything from the next one by mistake.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

enum { SPIN_NS = 20000, MOST_THREADS = 255, MOST_ITEMS = (1 << 24) - 1 };

typedef struct {
    int64_t stages;
    int64_t (*items)(void *job, int64_t stage); /* how many, 1 to MOST_ITEMS */
    void (*work)(void *job, int64_t stage, int64_t first, int64_t last, int thread);
} Plan;

static struct {
    pthread_mutex_t in_use; /* by the call whose job it is */
    pthread_mutex_t door;   /* guards `opened` */
    pthread_cond_t opened;
    _Atomic uint64_t state;
    _Atomic int64_t pending; /* items of the open stage that are not finished */
    _Atomic int sleepers;
    const Plan *plan; /* these three: valid while an item is taken and not finished */
    void *job;
    uint32_t first_stage;
    int helpers;
} team = {.in_use = PTHREAD_MUTEX_INITIALIZER, .door = PTHREAD_MUTEX_INITIALIZER, .opened = PTHREAD_COND_INITIALIZER};

static inline uint32_t stage_of(uint64_t state) { return state >> 32; }
static inline int threads_of(uint64_t state) { return state >> 24 & 255; }
static inline int64_t left_of(uint64_t state) { return state & MOST_ITEMS; }

static inline void pause_core(void) {
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

static inline int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Make `items` of a stage takeable, and wake whoever sleeps. The state is written before `sleepers` is read, and a
 * sleeper counts itself before it reads the state: one of them sees the other. */
static void open_stage(uint32_t stage, int threads, int64_t items) {
    atomic_store(&team.pending, items);
    atomic_store(&team.state, (uint64_t)stage << 32 | (uint64_t)threads << 24 | (uint64_t)items);
    if (atomic_load(&team.sleepers)) {
        pthread_mutex_lock(&team.door);
        pthread_cond_broadcast(&team.opened);
        pthread_mutex_unlock(&team.door);
    }
}

/* Until another stage is open than `stage`. */
static void await_other(uint32_t stage) {
    int64_t ends = now_ns() + SPIN_NS;
    do
        for (int i = 0; i < 16; i++) {
            if (stage_of(atomic_load_explicit(&team.state, memory_order_relaxed)) != stage) return;
            pause_core();
        }
    while (now_ns() < ends);
    pthread_mutex_lock(&team.door);
    atomic_fetch_add(&team.sleepers, 1);
    while (stage_of(atomic_load(&team.state)) == stage) pthread_cond_wait(&team.opened, &team.door);
    atomic_fetch_sub(&team.sleepers, 1);
    pthread_mutex_unlock(&team.door);
}

/* Take items and work on them until stage `until` is open (never, for helpers). Pieces shrink towards a stage's end, so
 * that all threads finish together. */
static void take_part(int thread, const uint32_t *until) {
    for (;;) {
        uint64_t state = atomic_load(&team.state);
        uint32_t stage = stage_of(state);
        int64_t left = left_of(state);
        if (until && stage == *until) return;
        if (!left || thread >= threads_of(state)) {
            await_other(stage);
            continue;
        }
        int64_t piece = left / (2 * threads_of(state));
        piece = piece ? piece : 1;
        if (!atomic_compare_exchange_strong(&team.state, &state, state - piece)) continue;
        const Plan *plan = team.plan;
        int64_t index = stage - team.first_stage;
        plan->work(team.job, index, left - piece, left, thread);
        if (atomic_fetch_sub(&team.pending, piece) > piece) continue;
        open_stage(stage + 1, threads_of(state), index + 1 < plan->stages ? plan->items(team.job, index + 1) : 0);
    }
}

static void *help(void *thread) {
    take_part((int)(intptr_t)thread, NULL);
    return NULL;
}

/* As many helpers as `threads` need, or as the system grants. Signals stay with the program's own threads. */
static int gather(int threads) {
    sigset_t all_signals, before;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    sigfillset(&all_signals);
    pthread_sigmask(SIG_SETMASK, &all_signals, &before);
    while (team.helpers < threads - 1) {
        pthread_t made;
        if (pthread_create(&made, NULL, help, (void *)(intptr_t)(team.helpers + 1))) break;
        pthread_detach(made);
        team.helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return threads <= team.helpers + 1 ? threads : team.helpers + 1;
}

/* Run a job on up to `threads` threads, this one among them. A second call at the same time works alone. */
static void run_together(const Plan *plan, void *job, int64_t threads) {
    if (threads < 2 || pthread_mutex_trylock(&team.in_use)) {
        for (int64_t stage = 0; stage < plan->stages; stage++)
            plan->work(job, stage, 0, plan->items(job, stage), 0);
        return;
    }
    int together = gather(threads > MOST_THREADS ? MOST_THREADS : (int)threads);
    uint32_t first = stage_of(atomic_load(&team.state)) + 1, end = first + (uint32_t)plan->stages;
    team.plan = plan, team.job = job, team.first_stage = first;
    open_stage(first, together, plan->items(job, 0));
    take_part(0, &end);
    pthread_mutex_unlock(&team.in_use);
}
