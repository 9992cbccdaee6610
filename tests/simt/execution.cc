#include "tests/simt/execution.h"

#include <algorithm>
#include <numeric>
#include <utility>

// Read by kernels as themselves; set at every switch.
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace semkv::simt {
namespace {

// Thrown by a thread that may not go on, through the kernel.
struct EndOfLaunch {};

constexpr size_t kMaxErrors = 8;
constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxGridYZ = 65535;

Execution* running_launch = nullptr;

StackPool& Stacks() {
  static StackPool stacks;
  return stacks;
}

std::string Text(const uint3& index) {
  std::string text = "(";
  text += std::to_string(index.x) + ", " + std::to_string(index.y) + ", ";
  text += std::to_string(index.z) + ")";
  return text;
}

std::string Text(Place place) {
  const std::string file = place.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line);
}

bool IsSame(Place a, Place b) { return a.line == b.line && std::string(a.file) == b.file; }

std::string ShapeError(const LaunchShape& shape) {
  if (shape.threads == 0 || shape.threads > kMaxThreads) {
    return std::string("a CTA of ") + std::to_string(shape.threads) +
           " threads; 1 to 1,024 are possible";
  }
  if (shape.grid_y > kMaxGridYZ || shape.grid_z > kMaxGridYZ || shape.grid_x > 0x7fffffffu) {
    return "a grid beyond (2^31 - 1, 65,535, 65,535)";
  }
  if (shape.dynamic_shared_bytes > kMaxSharedBytes) {
    return std::to_string(shape.dynamic_shared_bytes) + " bytes of dynamic shared memory of " +
           std::to_string(kMaxSharedBytes);
  }
  return "";
}

}  // namespace

Execution* Running() { return running_launch; }

std::string LaunchReport::Errors() const {
  return std::accumulate(errors.begin(), errors.end(), std::string(),
                         [](std::string all, const std::string& e) { return all + e + "\n"; });
}

int64_t LaunchReport::Bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, t] : traffic) bytes += t.read_bytes + t.written_bytes;
  return bytes;
}

LaunchReport LaunchFunction(const LaunchShape& shape, const LaunchOptions& options,
                            void (*function)(void*), void* argument) {
  LaunchReport report;
  const std::string error = ShapeError(shape);
  if (!error.empty()) {
    report.errors.push_back(error);
    return report;
  }
  return Execution(shape, options, function, argument).Run();
}

Execution::Execution(const LaunchShape& shape, const LaunchOptions& options,
                     void (*function)(void*), void* argument)
    : shape_(shape),
      function_(function),
      argument_(argument),
      rng_(options.seed),
      memory_(options, shape.dynamic_shared_bytes),
      threads_(shape.threads) {
  running_launch = this;
  gridDim = {shape.grid_x, shape.grid_y, shape.grid_z};
  blockDim = {shape.threads, 1, 1};
}

Execution::~Execution() { running_launch = nullptr; }

LaunchReport Execution::Run() {
  std::vector<uint32_t> ctas(IsEmpty(shape_) ? 0 : shape_.grid_x * shape_.grid_y * shape_.grid_z);
  std::iota(ctas.begin(), ctas.end(), 0);
  std::shuffle(ctas.begin(), ctas.end(), rng_);
  for (uint32_t cta : ctas) {
    RunCta(cta);
    if (failed_) break;
  }
  report_.traffic = memory_.TakeTraffic();
  report_.static_shared_bytes = memory_.static_shared_bytes();
  const int64_t shared_bytes = report_.static_shared_bytes + shape_.dynamic_shared_bytes;
  if (shared_bytes > kMaxSharedBytes) {
    report_.errors.push_back(std::to_string(shared_bytes) + " bytes of shared memory, static and " +
                             "dynamic, of " + std::to_string(kMaxSharedBytes));
  }
  if (shape_.dynamic_shared_bytes <= kDynamicWithoutAsking && shared_bytes > kSharedWithoutAsking) {
    report_.errors.push_back(std::to_string(shared_bytes) + " bytes of shared memory, static and " +
                             "dynamic, of " + std::to_string(kSharedWithoutAsking) +
                             " that need not be asked for");
  }
  return std::move(report_);
}

void Execution::RunThread(void* execution) {
  Execution* self = static_cast<Execution*>(execution);
  self->in_kernel_ = true;
  try {
    self->function_(self->argument_);
    if (!self->running_->has_waited) self->Report("ends before it waits for the previous kernel");
  } catch (const EndOfLaunch&) {
  }
  self->in_kernel_ = false;
}

void Execution::RunCta(uint32_t cta) {
  blockIdx = {cta % shape_.grid_x, cta / shape_.grid_x % shape_.grid_y,
              cta / shape_.grid_x / shape_.grid_y};
  memory_.BeginCta();
  ++epoch_;
  finished_ = at_barrier_ = 0;
  ready_.clear();
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    thread.state = ThreadState::kReady;
    thread.index = {static_cast<uint32_t>(i), 0, 0};
    thread.clock = {epoch_, cta, static_cast<uint32_t>(i), {}};
    thread.clock.lane_clock[i % kWarpSize] = 1;
    thread.copies.clear();
    thread.copy_group = 0;
    thread.has_waited = !shape_.overlaps_previous;
    thread.fiber.Start(Stacks().Stack(i), &RunThread, this);
    ready_.push_back(i);
  }
  while (!ready_.empty() && !failed_) {
    std::swap(ready_[rng_() % ready_.size()], ready_.back());
    const size_t next = ready_.back();
    ready_.pop_back();
    Switch(next);
  }
  if (finished_ < threads_.size() && !failed_) ReportDeadlock();
}

void Execution::Switch(size_t next) {
  Thread& thread = threads_[next];
  running_ = &thread;
  threadIdx = thread.index;
  thread.fiber.Resume();
  running_ = nullptr;
  if (thread.fiber.finished()) {
    thread.state = ThreadState::kFinished;
    ++finished_;
  }
}

void Execution::MakeReady(Thread& thread) {
  thread.state = ThreadState::kReady;
  ready_.push_back(static_cast<size_t>(thread.clock.thread));
}

void Execution::Report(const std::string& message) {
  if (report_.errors.size() < kMaxErrors) {
    report_.errors.push_back(Name(*running_) + ": " + message);
  }
}

void Execution::Fail(const std::string& message) {
  Report(message);
  failed_ = true;
  throw EndOfLaunch{};
}

void Execution::CheckAccess(const MemoryAccess& access) {
  const bool in_kernel = std::exchange(in_kernel_, false);
  const Verdict verdict =
      memory_.Check(access, running_->clock, running_->fiber.stack(), running_->has_waited);
  if (!verdict.message.empty()) Report(verdict.message);
  if (verdict.fatal) {
    failed_ = true;
    // Not by an exception: to the compiler a memory access throws none.
    for (;;) running_->fiber.Suspend();
  }
  in_kernel_ = in_kernel;
}

void Execution::Barrier(Place place) {
  running_->place = place;
  running_->state = ThreadState::kAtBarrier;
  if (++at_barrier_ == threads_.size()) ReleaseBarrier();
  // The last one waits too: it is as ready as the others, and not first by right.
  running_->fiber.Suspend();
}

void Execution::ReleaseBarrier() {
  for (const Thread& thread : threads_) {
    if (!IsSame(thread.place, threads_[0].place)) {
      Fail(std::string("threads wait at different barriers: ") + Name(threads_[0]) + " at " +
           Text(threads_[0].place) + ", " + Name(thread) + " at " + Text(thread.place));
    }
  }
  ++epoch_;
  at_barrier_ = 0;
  for (Thread& thread : threads_) {
    thread.clock.epoch = epoch_;
    MakeReady(thread);
  }
}

bool Execution::WarpIsComplete(const Thread& caller) const {
  const size_t warp = caller.clock.thread - caller.lane();
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((caller.call.mask >> lane & 1) == 0) continue;
    if (warp + lane >= threads_.size()) return false;
    const Thread& thread = threads_[warp + lane];
    if (thread.state != ThreadState::kInWarpCall) return false;
    if (thread.call.mask != caller.call.mask) return false;
    if (std::string(thread.call.name) != caller.call.name) return false;
  }
  return true;
}

void Execution::CompleteWarpCall(const Thread& caller) {
  const size_t warp = caller.clock.thread - caller.lane();
  const uint32_t mask = caller.call.mask;
  uint32_t joined[kWarpSize] = {};
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const ThreadClock& clock = threads_[warp + lane].clock;
    for (int l = 0; l < kWarpSize; ++l) joined[l] = std::max(joined[l], clock.lane_clock[l]);
  }
  const bool orders_memory = caller.call.operand == nullptr;
  auto operands = std::make_shared<Operands>();
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const WarpCall& call = threads_[warp + lane].call;
    const std::byte* operand = static_cast<const std::byte*>(call.operand);
    operands->of_lane[lane].assign(operand, operand + call.bytes);
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Thread& thread = threads_[warp + lane];
    thread.operands = operands;
    if (orders_memory) {
      std::copy(joined, joined + kWarpSize, thread.clock.lane_clock);
      ++thread.clock.lane_clock[lane];
    }
    MakeReady(thread);
  }
}

void Execution::JoinWarpCall(const WarpCall& call, Place place) {
  Thread& self = *running_;
  if ((call.mask >> self.lane() & 1) == 0) {
    Fail(std::string(call.name) + " at " + Text(place) + " by a lane that its mask does not name");
  }
  self.call = call;
  self.place = place;
  self.state = ThreadState::kInWarpCall;
  if (WarpIsComplete(self)) CompleteWarpCall(self);
  self.fiber.Suspend();
}

std::string Execution::Name(const Thread& thread) const {
  return std::string("CTA ") + Text(blockIdx) + " thread " + Text(thread.index);
}

// One line for each place where threads wait, naming the first.
void Execution::ReportDeadlock() {
  std::vector<std::pair<std::string, std::pair<const Thread*, int>>> waits;
  for (const Thread& thread : threads_) {
    std::string what = "has finished";
    if (thread.state == ThreadState::kAtBarrier) what = "waits at __syncthreads";
    if (thread.state == ThreadState::kInWarpCall) {
      what = "waits at " + std::string(thread.call.name) + " with mask " +
             std::to_string(thread.call.mask);
    }
    if (thread.state != ThreadState::kFinished) what += " (" + Text(thread.place) + ")";
    auto it = std::find_if(waits.begin(), waits.end(), [&](auto& w) { return w.first == what; });
    if (it == waits.end()) it = waits.insert(it, {what, {&thread, 0}});
    ++it->second.second;
  }
  std::string message = "deadlock:";
  for (const auto& [what, who] : waits) {
    message += std::string(" ") + Name(*who.first) + " " + what;
    if (who.second > 1) message += ", and " + std::to_string(who.second - 1) + " more";
    message += ";";
  }
  report_.errors.push_back(message);
  failed_ = true;
}

}  // namespace semkv::simt
