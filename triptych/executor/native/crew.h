/* Threads that help with a large operation while a core has nothing to do.
 *
 * An operation is cut into parts, and whoever is free takes the next one: a helper that the system
 * does not let run leaves its parts to the others, and only one that has come is waited for. One
 * operation is helped with at a time; a second thread that asks meanwhile works alone. Whether a core
 * is idle the system says, looked at every now and then: instances that share a machine do not fight
 * for it. Knows parts, threads and cores; not what a part is. For Linux.
 */

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MOST_HELPERS 63
#define SPIN_NS 100000    /* that a helper stays awake for the next operation */
#define LOOK_NS 1000000   /* between two looks at how busy the machine is */
#define HELPER_STACK (1 << 20)

/* Part `part` of what `work` says; not 0 if it failed. */
typedef int Part(const void *work, int part);

static struct {
    pthread_mutex_t owner; /* of the operation that is helped with */
    pthread_mutex_t lock;  /* of all that is not atomic */
    pthread_cond_t begun;
    Part *compute; /* none: nobody may join */
    const void *work;
    int parts, wanted, started, sleeping;
    atomic_uint turn; /* counts operations */
    atomic_int next, inside, failed, awake;
    /* The owner's: */
    int64_t looked_ns;
    int idle, cores;
    /* How many parts helpers have computed: */
    atomic_long helped;
} crew = {.owner = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .begun = PTHREAD_COND_INITIALIZER};

static inline void rest(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

/* Compute parts until none is left; how many. */
static int take_parts(Part *compute, const void *work, int parts) {
    int done = 0;
    for (int part; (part = atomic_fetch_add(&crew.next, 1)) < parts; done++)
        if (compute(work, part)) atomic_store(&crew.failed, 1);
    return done;
}

static void *help(void *first) {
    unsigned seen = (unsigned)(uintptr_t)first;
    for (;;) {
        atomic_fetch_add(&crew.awake, 1);
        for (int64_t until = now_ns() + SPIN_NS; atomic_load(&crew.turn) == seen && now_ns() < until;)
            for (int i = 0; i < 16; i++) rest();
        atomic_fetch_sub(&crew.awake, 1);
        pthread_mutex_lock(&crew.lock);
        crew.sleeping++;
        while (atomic_load(&crew.turn) == seen) pthread_cond_wait(&crew.begun, &crew.lock);
        crew.sleeping--;
        seen = atomic_load(&crew.turn);
        Part *compute = atomic_load(&crew.inside) < crew.wanted ? crew.compute : 0;
        const void *work = crew.work;
        int parts = crew.parts;
        if (compute) atomic_fetch_add(&crew.inside, 1);
        pthread_mutex_unlock(&crew.lock);
        if (!compute) continue;
        atomic_fetch_add(&crew.helped, take_parts(compute, work, parts));
        atomic_fetch_sub(&crew.inside, 1);
    }
    return 0;
}

/* How many threads would run now if they could, all of the machine; -1 if nobody says. */
static int running(void) {
    static int file = -1;
    char said[128];
    if (file < 0) file = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : pread(file, said, sizeof said - 1, 0);
    if (size <= 0) return -1;
    said[size] = 0;
    char *slash = strchr(said, '/');
    if (!slash) return -1;
    while (slash > said && slash[-1] >= '0' && slash[-1] <= '9') slash--;
    return atoi(slash);
}

/* Cores that nobody uses, but for our own helpers that wait awake. */
static int idle_cores(void) {
    int64_t now = now_ns();
    if (!crew.cores) {
        cpu_set_t ours;
        crew.cores = sched_getaffinity(0, sizeof ours, &ours) ? 1 : CPU_COUNT(&ours);
    }
    if (now - crew.looked_ns > LOOK_NS) {
        int ours = atomic_load(&crew.awake), all = running();
        crew.idle = all < 0 ? 0 : crew.cores - (all - ours);
        crew.looked_ns = now;
    }
    return crew.idle;
}

/* Threads begin once. Signals are for those who know of them. */
static void start_helpers(int count) {
    pthread_attr_t attributes;
    sigset_t all, before;
    if (crew.started >= count || pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, HELPER_STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    for (pthread_t thread; crew.started < count; crew.started++)
        if (pthread_create(&thread, &attributes, help, (void *)(uintptr_t)atomic_load(&crew.turn)))
            break;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&attributes);
}

/* How many may help with `parts` parts, of `threads` threads in all; if any, `share_out` follows. */
static int hire(int parts, int threads) {
    int helpers = threads - 1 < MOST_HELPERS ? threads - 1 : MOST_HELPERS;
    helpers = helpers < parts ? helpers : parts - 1;
    if (helpers < 1 || pthread_mutex_trylock(&crew.owner)) return 0;
    int idle = idle_cores();
    helpers = helpers < idle ? helpers : idle;
    if (helpers > 0) return helpers;
    pthread_mutex_unlock(&crew.owner);
    return 0;
}

/* Compute all parts, with so many helpers. Not 0 if one of them failed. */
static int share_out(Part *compute, const void *work, int parts, int helpers) {
    start_helpers(helpers);
    pthread_mutex_lock(&crew.lock);
    crew.compute = compute, crew.work = work, crew.parts = parts, crew.wanted = helpers;
    atomic_store(&crew.next, 0);
    atomic_store(&crew.failed, 0);
    atomic_fetch_add(&crew.turn, 1);
    for (int i = 0; i < helpers && i < crew.sleeping; i++) pthread_cond_signal(&crew.begun);
    pthread_mutex_unlock(&crew.lock);
    take_parts(compute, work, parts);
    pthread_mutex_lock(&crew.lock);
    crew.compute = 0;
    pthread_mutex_unlock(&crew.lock);
    for (int turns = 0; atomic_load(&crew.inside); turns++)
        if (turns < 1000) rest();
        else sched_yield();
    int failed = atomic_load(&crew.failed);
    pthread_mutex_unlock(&crew.owner);
    return failed;
}

/* Let helpers begin now: they have the niceness of whoever begins them. */
void muster(int threads) {
    pthread_mutex_lock(&crew.owner);
    start_helpers(threads - 1 < MOST_HELPERS ? threads - 1 : MOST_HELPERS);
    pthread_mutex_unlock(&crew.owner);
}

/* How many cores there are, as the system sees it if 0. */
void set_cores(int cores) {
    pthread_mutex_lock(&crew.owner);
    crew.cores = cores, crew.looked_ns = 0;
    pthread_mutex_unlock(&crew.owner);
}

/* Parts that helpers have computed. */
long num_helped(void) { return atomic_load(&crew.helped); }
